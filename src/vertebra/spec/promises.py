"""What every model can do. A config class that cannot says so in `limits`, with the reason, and refuses in words."""

PROMISES = {
    "weights": "keys and shapes of the published checkpoints; safetensors round trip bit for bit",
    "features": "`features_only` with any `out_indices`: maps as `feature_info` announces",
    "intermediates": "`forward_intermediates` in every form, `prune_intermediate_layers`",
    "embedding": "`num_classes=0`, `forward_head(pre_logits=True)`, `reset_classifier`",
    "global_pool": "every pooling: `''`, avg, max, avgmax, catavgmax on maps; token, avg, max, avgmax, map on tokens",
    "output_stride": "8, 16 and 32 by dilation: the same weights, a denser map",
    "any_size": "images of any size from 32 px, odd and not square; a transformer takes the one that `img_size=` named "
    "when it was made, or any with `dynamic_img_size=True`",
    "in_chans": "1 to 13 input channels, pretrained weights converted",
    "checkpointing": "gradient checkpointing gives the same gradients",
    "groups": "parameters sorted by depth; freezing by depth; no weight decay where it harms",
    "aggregate": "one fused map at any stride, by `vertebra.aggregate`",
    "export": "`torch.export` with a dynamic batch",
    "export_size": "`torch.export` with dynamic height and width (multiples of the patch, of a CNN's whole reduction)",
    "onnx": "`vertebra export --format onnx --dynamic-size`: ONNX Runtime answers as eager does, at any batch and size",
    "openvino": "`vertebra export --format openvino --dynamic-size`: OpenVINO does, too",
    "compile": "`torch.compile(fullgraph=True)`",
    "fx": "torchvision's `create_feature_extractor`",
    "meta": "built on `meta`, filled later",
    "bf16": "bfloat16 answers close to float32's",
    "channels_last": "channels-last in, channels-last out, no hidden copy back",
}
"""Name -> what is promised. tests/contract/ runs each for every model."""
