"""What reads a feature or a region."""
