"""Recovery without training: what a few unlabelled batches tell about the weights of a pruned network."""
