"""Labels of stored samples: what a label says, the records of who said it, files and tools they travel by."""
