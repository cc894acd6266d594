"""What networks of ours have in common: the two halves of timm's networks, and a last linear layer `fc`."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


class Classifier(nn.Module):
    """A network that maps images [B, 3, H, W] to logits [B, num_classes]; `pooled` and `classified` are its head."""

    fc: nn.Linear
    num_classes: int
    num_features: int
    drop_rate: float

    def forward_features(self, x: Tensor) -> Tensor:
        """Images [B, 3, H, W] -> features, [B, C, H', W'] in a convolutional network."""
        raise NotImplementedError

    def pooled(self, x: Tensor) -> Tensor:
        """Features -> what the last layer reads, [B, C]: here their mean, with dropout."""
        return F.dropout(x.mean((2, 3)), self.drop_rate, self.training)

    def classified(self, x: Tensor) -> Tensor:
        """What the last layer reads -> logits [B, num_classes]."""
        logits: Tensor = self.fc(x)
        return logits

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Features -> logits [B, num_classes], or with `pre_logits` what the last layer reads."""
        x = self.pooled(x)
        return x if pre_logits else self.classified(x)

    def forward(self, x: Tensor) -> Tensor:
        """Images [B, 3, H, W] -> logits [B, num_classes]."""
        return self.forward_head(self.forward_features(x))

    def get_classifier(self) -> nn.Module:
        """The last layer, which has one output per class."""
        return self.fc
