"""The OpenMoji data and benchmark: named drawings and scenes made of them, to train and evaluate on two cores, offline."""
