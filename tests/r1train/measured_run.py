"""A run of r1train whose memory is measured: ``python measured_run.py FOLDER SHAPE OVERRIDE…``.

A process of its own, because malloc is told to give back at once what is freed, which cannot be
undone. Prints the peak of resident memory above that before the run, in bytes, and the prompts'
mean length.
"""

from __future__ import annotations

import ctypes
import gc
import json
import re
import sys
from pathlib import Path
from statistics import fmean

M_MMAP_THRESHOLD, M_TRIM_THRESHOLD, M_ARENA_MAX = -3, -1, -8  # of malloc.h

RECIPE = """
name = "measured"
stages = ["grpo"]
threads = 1
[task]
prompt_template = "plain"
train_size = 64
heldout_size = 4
[eval]
limit = 1
k = 1
max_completion_length = 2
[grpo]
save_steps = 0
max_steps = 2
"""


def status(key: str) -> int:
    found = re.search(rf"^{key}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found
    return int(found[1]) * 1024


def make(folder: Path, shape: dict[str, object]) -> None:
    """A model of that shape with random weights, and its tokenizer."""
    import torch
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    from r1train.model.presets import mini_tokenizer

    tokenizer = mini_tokenizer([f"What is {a} + {b}?" for a in range(10) for b in range(10)])
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    kind = shape.pop("model_type")
    more = {"num_mtp_layers": 0, "n_group": 4, "topk_group": 2} if kind == "deepseek_v3" else {}
    config = CONFIG_MAPPING[kind](**shape, **more, **ends, bos_token_id=None)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def main(folder: Path, shape: dict[str, object], overrides: list[str]) -> None:
    libc = ctypes.CDLL(None)
    libc.mallopt(M_MMAP_THRESHOLD, 64 << 10)
    libc.mallopt(M_TRIM_THRESHOLD, 0)
    libc.mallopt(M_ARENA_MAX, 1)
    import matplotlib.pyplot  # noqa: F401  (modules are no memory of the run)
    import reasoning_gym  # noqa: F401
    import torch

    from r1kernels.core import native
    from r1train.config.recipe import load_config
    from r1train.run.runner import run
    from r1train.stages.rl import RL

    make(folder / "model", shape)
    (folder / "measured.toml").write_text(RECIPE)
    options = [f"model.path={folder}/model", f"output_dir={folder}/runs", *overrides]
    config = load_config(folder / "measured.toml", options)
    lengths: list[int] = []
    update = RL.update

    def measured(stage: RL) -> dict[str, float] | None:
        assert stage.work is not None
        lengths.extend(map(len, stage.work.rollout.prompt_ids))
        if native.load("cpp") is None:  # idle blocks are the system's, who takes them when it must
            torch.ops.r1_cpp.empty_cache()
        return update(stage)

    RL.update = measured  # type: ignore[method-assign]
    gc.collect()
    libc.malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # sets VmHWM to VmRSS
    before = status("VmRSS")
    run(config)
    print(json.dumps({"peak": status("VmHWM") - before, "prompt": round(fmean(lengths))}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]), sys.argv[3:])
