"""Our Inception equals torch-fidelity's on the same weights (random ones: there is no network)."""

from pathlib import Path

import torch
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from softvq.pretrained.inception import Inception, _Norm


def test_features_and_logits_are_torch_fidelitys(tmp_path: Path):
    torch.manual_seed(0)
    ours = Inception()
    for module in ours.modules():  # activations of a sensible size, and batch norms that do something
        if isinstance(module, _Norm):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
            module.weight.uniform_(1, 2)
            module.bias.normal_(0, 0.1)
    counts = {f"{n}.num_batches_tracked": torch.tensor(0) for n, m in ours.named_modules() if isinstance(m, _Norm)}
    torch.save({**ours.state_dict(), **counts}, tmp_path / "weights.pth")
    theirs = FeatureExtractorInceptionV3("x", ["2048", "logits_unbiased"], str(tmp_path / "weights.pth"))
    for size in (32, 64, 299, 400):
        images = torch.randint(0, 256, (2, 3, size, size), dtype=torch.uint8)
        features, logits = theirs(images)
        found = ours(images)
        assert features.std() > 1e-3
        torch.testing.assert_close(found, features, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(ours.logits(found), logits, rtol=1e-4, atol=1e-5)
