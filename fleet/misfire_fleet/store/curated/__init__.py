"""Keeps what people make of the samples: snapshots, and the runs and bundles that came of them."""
