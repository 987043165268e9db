"""One class per meta-architecture; a paper is a config of one of them."""
