"""Label Studio's files: tasks with annotations and predictions, the labelling configuration, brush masks."""
