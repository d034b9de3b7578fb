"""Sends samples to label tools and fetches what people said about them: Label Studio and CVAT."""
