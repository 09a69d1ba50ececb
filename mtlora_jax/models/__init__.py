"""The network: streams, layers, backbones, decoders. Nothing here knows the config, the tasks' losses or PyTorch."""
