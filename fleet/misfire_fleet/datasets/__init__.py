"""Makes data sets facts: immutable snapshots, splits that stay, and test sets that nothing trains on."""
