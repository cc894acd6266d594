"""UDA (Xie 2019): one network learns to predict the same for two views of an unlabeled image."""
