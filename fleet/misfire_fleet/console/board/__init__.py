"""Gathers what the fleet's pages show: rows of vehicles, failure rates, live events, score histories."""
