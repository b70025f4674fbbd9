import pytest
import torch

from vertebra.layers.head import ClassifierHead


@pytest.mark.parametrize(("pool", "features"), [("avg", 6), ("max", 6), ("avgmax", 6), ("catavgmax", 12)])
def test_pooled_heads_answer_with_one_row_an_image(pool: str, features: int) -> None:
    x = torch.rand(2, 6, 3, 5)
    head = ClassifierHead(6, 4, pool)
    assert head.num_features == features
    assert head(x).shape == (2, 4)
    assert torch.equal(head(x), head.fc(head(x, pre_logits=True)))
    assert ClassifierHead(6, 0, pool)(x).shape == (2, features)


def test_without_pooling_the_classifier_answers_at_every_pixel() -> None:
    x = torch.rand(2, 6, 3, 5)
    head = ClassifierHead(6, 4, "")
    dense = head(x)
    assert dense.shape == (2, 4, 3, 5)
    torch.testing.assert_close(dense[1, :, 2, 3], head.fc(x[1, :, 2, 3]))
    assert torch.equal(head(x, pre_logits=True), x)


def test_dropout_acts_in_training_only() -> None:
    x = torch.ones(1, 64, 2, 2)
    head = ClassifierHead(64, 0, drop_rate=0.5)
    assert (head(x) == 0).any()
    assert torch.equal(head.eval()(x), torch.ones(1, 64))
