"""CVAT by its SDK: a task for each batch of pictures, shapes by XML 1.1."""
