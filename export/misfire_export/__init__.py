"""From a trained model to one verified, calibrated bundle that a vehicle can trust."""
