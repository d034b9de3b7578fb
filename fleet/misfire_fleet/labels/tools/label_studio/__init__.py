"""Label Studio over its REST API: projects, tasks with predictions, and the annotations that changed."""
