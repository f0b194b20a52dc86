"""Numbers of a trained model over a split of the data, in which every image is counted once."""
