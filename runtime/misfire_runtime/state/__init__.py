"""What a vehicle remembers between two runs, in small files that survive a power cut."""
