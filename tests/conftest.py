import jax


def pytest_collection_modifyitems(config, items):
    """Tests marked `gpu` drop out where jax finds no accelerator."""
    needing = [item for item in items if item.get_closest_marker("gpu")]
    if needing and jax.default_backend() == "cpu":
        config.hook.pytest_deselected(needing)
        items[:] = [item for item in items if item not in needing]
