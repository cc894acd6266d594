"""UDA (Xie 2019): one network that is consistent between views of unlabeled images."""
