"""Names in any script, on a machine whose locale only supports ASCII."""

import json
import os
import subprocess
import sys

import tiny_runs

NAMES = ["фон", "кошка 猫", "naïve", "😀"]
# Python's own remedies for such locales are switched off.
QUICK = {"XLA_FLAGS": "--xla_backend_optimization_level=0", "TF_CPP_MIN_LOG_LEVEL": "3"}
LOCALE = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONWARNDEFAULTENCODING": "1"}
STRICT = """
import locale, runpy, sys, warnings

if __name__ == "__main__":
    assert locale.getencoding().upper() != "UTF-8"
    warnings.filterwarnings("error", category=EncodingWarning, module="mtlora_jax|tfds_pascal_context")
    warnings.filterwarnings("ignore", category=EncodingWarning, module="(?!mtlora_jax|tfds_pascal_context)")
    sys.argv.pop(0)
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""


def test_a_run_from_data_to_predictions(tmp_path):
    base = tiny_runs.prepare(tmp_path, epochs=2, eval_every_epochs=2, checkpoint_every_steps=0)
    (base / "data" / "classes.json").write_text(json.dumps({"semseg": NAMES}, ensure_ascii=False), encoding="utf-8")
    (base / "strict.py").write_text(STRICT)

    def run(module, *flags):
        command = [sys.executable, base / "strict.py", module, *flags]
        done = subprocess.run(command, capture_output=True, env=os.environ | LOCALE | QUICK)
        assert (done.returncode, done.stderr.decode()) == (0, "")
        return done.stdout.decode("ascii")

    config = f"--config={base / 'micro.py'}"
    assert "\\u043a\\u043e\\u0448\\u043a\\u0430 \\u732b" in run("mtlora_jax.main", config, f"--workdir={base / 'run'}")
    assert "кошка 猫" in (base / "run" / "best" / "README.md").read_text(encoding="utf-8")
    assert json.loads((base / "run" / "best" / "config.json").read_text(encoding="utf-8"))["classes"]["semseg"] == NAMES
    assert "semseg/IoU/кошка 猫" in json.loads((base / "run" / "metrics.json").read_text(encoding="utf-8"))
    run(
        "mtlora_jax.predict",
        f"--model={base / 'run' / 'best'}",
        f"--images={base / 'data' / 'images'}",
        f"--output={base / 'out'}",
    )
    assert "<li>" in (base / "out" / "index.html").read_text(encoding="utf-8")
