"""The fleet's side: collect uploads, show them, curate and label them, retrain."""
