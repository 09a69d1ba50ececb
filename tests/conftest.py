import os
import signal

# These tests take most of their time to compile programs that are small. An option that is set already has its way.
os.environ["XLA_FLAGS"] = f"--xla_backend_optimization_level=0 {os.environ.get('XLA_FLAGS', '')}".strip()

import jax


def pytest_configure(config):
    """Hear the signals that tests send: a shell has background jobs ignore Ctrl-C, and `nohup` a closed terminal."""
    for number, handler in {signal.SIGINT: signal.default_int_handler, signal.SIGHUP: signal.SIG_DFL}.items():
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, handler)


def pytest_collection_modifyitems(config, items):
    """Tests marked `gpu` drop out where jax finds no accelerator. The last rooms, with the longest tests, begin."""
    items.sort(key=lambda item: item.path, reverse=True)
    needing = [item for item in items if item.get_closest_marker("gpu")]
    if needing and jax.default_backend() == "cpu":
        config.hook.pytest_deselected(needing)
        items[:] = [item for item in items if item not in needing]
