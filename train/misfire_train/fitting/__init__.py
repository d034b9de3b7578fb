"""Fits what a run consists of: the task network, its failure threshold, its head, alone or by folds."""
