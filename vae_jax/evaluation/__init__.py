"""Numbers about a trained model over a split of the data, in which every image counts once."""
