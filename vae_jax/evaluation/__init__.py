"""Numbers of a trained model, with every image of a split counted once."""
