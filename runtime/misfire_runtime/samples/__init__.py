"""From a chosen frame to the bytes and the offer of a sample: privacy, encoding, clips."""
