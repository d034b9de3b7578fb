"""Labels samples by the votes of models; people get what they disagree on, and an audit of the rest."""
