"""The network: features, layers, backbones, decoders. Nothing here depends on the config, the losses or PyTorch."""
