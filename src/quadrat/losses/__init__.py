"""Loss terms, and the weighting that turns named terms into one number."""
