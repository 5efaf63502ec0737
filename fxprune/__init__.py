"""fxprune: exact pruning of convolutional networks as torch.fx passes."""
