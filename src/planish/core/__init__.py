"""What everything else stands on: images, threat, losses, randomness, modes."""
