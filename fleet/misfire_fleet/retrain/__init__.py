"""`misfire retrain`: uploads and their labels become the next run, and the next bundle."""
