"""Names of checkpoints, and the step that is in each of them."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from hessdist.config.loader import parse_job
from hessdist.errors import CheckpointError, JobError
from hessdist.service.queue import Watched
from hessdist.workload.steps import find_checkpoints, scan_checkpoints, step_of

# As training scripts and libraries write them: PyTorch's examples, Lightning, transformers, timm,
# fairseq, detectron, mmengine, stable-baselines, guided diffusion, torchtitan, and people.
STEPS = {
    "epoch=0-step=10.ckpt": 10,
    "epoch=0-step=10-v1.ckpt": 10,
    "epoch=2-val_loss=0.12.ckpt": 2,
    "sample-mnist-epoch=02-val_loss=0.32.ckpt": 2,
    "ckpt_epoch_10_acc_93.5.pth": 10,
    "model_epoch_10_lr_0.1.pt": 10,
    "resnet18_cifar10_epoch5_seed0.pth": 5,
    "checkpoint_0010.pth.tar": 10,
    "iter_0000500.pth": 500,
    "epoch_12.pth": 12,
    "step5k.pt": 5000,
    "step_1e3.pt": 1000,
    "model.step-2,000.pt": 2000,
    "ckpt-500-ema.pt": 500,
    "timestep1000_model3.pt": 1000,
    "2024-05-01_step_7.pt": 7,
    "model_10.pt": 10,
    "global_step500.pt": 500,
    "step_5_step_5.pt": 5,
    "rl_model_1000_steps.pt": 1000,
    "model_0004999.pth": 4999,
    "step-1000": 1000,
    "checkpoint-500": 500,
    "tmp-checkpoint-500": 500,
    "checkpoint5.pt": 5,
    "step-1.5M.pt": 1500000,
    "step_1.0.pt": 1,
    "10k-steps.pt": 10000,
    "10ksteps.pt": 10000,
    "1.5M_steps.pt": 1500000,
    "100epochs.pt": 100,
    "model_100_epochs.pt": 100,
    "epoch_10_of_100.pt": 10,
    "epoch-10-of-100.pt": 10,
    "step_00010_001.pt": 10,
    "step-9223372036854775807.pt": 9223372036854775807,
    "step-123456789012.pt": 123456789012,
    "epoch=3-val_loss=1.11.ckpt": 3,
    "epoch=12-val_acc=93.ckpt": 12,
    "seed_0_step_10.pt": 10,
    "lr_1e-3_10.pt": 10,
    "bs32_10.pt": 10,
    "bs_32_10.pt": 10,
    "vit_224x224_epoch_3.pth": 3,
    "model-7B-step-500.pt": 500,
    "checkpoint-100k.pt": 100000,
    "20240501_model_10.pt": 10,
    "2024-05-01T12-30-00_epoch_4.ckpt": 4,
    "2024-05-01_12-30-00_10.pt": 10,
    "step_20240501.pt": 20240501,
    "ema_0.9999_010000.pt": 10000,
    "epoch7th.pt": 7,
    "step10final.pt": 10,
    "warmup_steps_1000_step_5.pt": 5,
    "max_steps_10000_epoch_3.pt": 3,
    "GlobalStep_5.pt": 5,
    "modelEpoch10.pt": 10,
    "ep010.pth": 10,
    "iter-000500-ckpt.pth": 500,
    "lit-gpt iter-000500.pth": 500,
    "lenet5-epoch7.safetensors": 7,
    "7.pt": 7,
    "00010.pt": 10,
    "step=20-epoch=3.ckpt": 20,
    "epoch=12-val_loss=0.31-step=400.ckpt": 400,
    "G_1000.pth": 1000,
    "opt-125m_step_10.pt": 10,
    "resnet_optimizer_sgd_step_10.pt": 10,
    "model_and_optimizer_10.pt": 10,
    "best_coco_bbox_mAP_epoch_12.pth": 12,
    "epoch10.pt": 10,
    "snapshot_10.pth": 10,
    "network-snapshot-000200.pt": 200,
    "step_number=500.pt": 500,
    "iter_num_10.pt": 10,
    "step 10.pt": 10,
    "step(10).pt": 10,
    "step-10 (1).pt": 10,
    "epoch_12_iter_500.pth": 500,
    "epoch12_iter500.pth": 500,
    "model-1000.pt": 1000,
    "weights.10.pt": 10,
    "weights.epoch-10.pt": 10,
    "epoch_10_step.pt": 10,
    "step_1000_epoch.pt": 1000,
    "5epoch_100step.pt": 100,
    "step1000-seed3-lr0.1.pt": 1000,
    "step1000seed3.pt": 1000,
    "step10v2.pt": 10,
    "v1.0_step_5.pt": 5,
    "num_updates_100.pt": 100,
    "state_step_3.pt": 3,
    "epochs_100_step_5.pt": 5,
    "0.pt": 0,
    "epoch=0.ckpt": 0,
    "step=10,loss=3.pt": 10,
    "run_3_100.pt": 100,
    "model(10).pt": 10,
    "checkpoint_10.pt": 10,
    "checkpoint.10.pt": 10,
    "ckpt_10_ema.pt": 10,
    "ema_10.pt": 10,
    "model_10_10.pt": 10,
    "10.pt.tar": 10,
    "swa_10.pt": 10,
    "loss_0.5_iter_20.pth": 20,
    "step_2m.pt": 2000000,
    "step-3g.pt": 3000000000,
    "step_5_thousand.pt": 5000,
    "epoch3_loss12.pt": 3,
    "epoch3loss12.pt": 3,
    "lora_r8_step_3.pt": 3,
    "cifar100_resnet50_epoch_9.pth": 9,
    "mnist-10.pt": 10,
    "step-00000050.pt": 50,
    "step3_epoch4": 3,
    "ep0-ba1000-rank0.pt": 0,
    "Step_0500.PT": 500,
    "model_step_10_20240501.pt": 10,
    "model.step10.seed1.pt": 10,
    "step.10.pt": 10,
    "step:10.pt": 10,
    "epoch_1e2.pt": 100,
    "adam_step_3.pt": 3,
    "model_best_10.pt": 10,
    "step_1_of_5.pt": 1,
    "12_epoch.pt": 12,
    "epoch_0012.pt": 12,
    "-5.pt": 5,
    "trained_10_epochs_lr_0.01_bs_64.pt": 10,
    "step000010.ckpt": 10,
    "iter500k.pth": 500000,
    "size_224_model_7.pt": 7,
    "model_224px_7.pt": 7,
    "model_fp16_7.pt": 7,
    "model_16bit_7.pt": 7,
    "step_5k_epoch_1.pt": 5000,
    "bs_64_epochs_10.pt": 10,
    "lr0.01_epochs_10.pt": 10,
    "seed_1_steps_10.pt": 10,
    "step_5_10.pt": 5,
    "epoch_5_10.pt": 5,
    "model-epoch=05.ckpt": 5,
    "step_000000000000000000000000000005.pt": 5,
    "epoch_20_valloss_0.5.pt": 20,
    "model_ep10_it500.pt": 10,
    "iter_10.00.pt": 10,
    "model.ckpt.10.pt": 10,
    "d_10_g_10.pt": 10,
    "fold0_epoch_5.pt": 5,
    "kfold_3_epoch_5.pt": 5,
    "w_10.pt": 10,
    "top1_76_epoch_3.pt": 3,
    "acc=0.9-step=10.pt": 10,
    "step=10-acc=0.9.pt": 10,
    "step=10-acc=1.ckpt": 10,
    "loss=3-10.pt": 10,
    "Epoch-3,step-40.pt": 40,
    "T5_step_7.pt": 7,
    "gpt_3_step_7.pt": 7,
    "step7_gpt3.pt": 7,
    "net_epoch_200_id_3.pth": 200,
    "200_net_G.pth": 200,
    "epoch_3-v2.ckpt": 3,
    "ckpt_3-v2.ckpt": 3,
    "model_3-v1.ckpt": 3,
}

NO_STEPS = [
    "last.ckpt",
    "last-v1.ckpt",
    "resnet18_cifar10.pth",
    "model_best_v2.pth",
    "model-00001-of-00002.safetensors",
    "optimizer_10.pt",
    "rng_state_0.pth",
    "model_final.pth",
    "checkpoint_best.pt",
    "step=-1.pt",
    "step--1.pt",
    "step-٣.pt",
    "model_acc_93.pth",
    "acc_93.5.pth",
    "seed0.pt",
    "seed_1.pt",
    "gpt2-124M.pt",
    "model_20240501.pt",
    "2024-05-01.pt",
    "model010000.pt",
    "sleep5.pt",
    "multistep_10.pt",
    "final.pt",
    "pytorch_model.bin",
    "model.safetensors",
    "training_args.bin",
    "scheduler.pt",
    "scaler_10.pt",
    "trainer_state_10.pt",
    "yolov8n.pt",
    "mp_rank_00_model_states.pt",
    "e10.pth",
    "model_v_2.pth",
    "1e3.pt",
    "10.5.pt",
    "random_states_0.pt",
    "step_500-00001-of-00002.safetensors",
    "fold_1.pt",
    "model_t1000.pt",
    "last_step.pt",
    "model_-5.pt",
    "warmup_steps_1000.pt",
    "checkpoint-v2.pt",
    "model-e5.pt",
    "model_top1_76.pt",
    "f1_80.pt",
    "latest_net_G.pth",
]

REFUSED = [
    "model_50_10.pt",
    "step_5_step_7.pt",
    "checkpoint_1_50000.pt",
    "step_1.5.pt",
    "step_2.000.pt",
    "step_100_000.pt",
    "step-99999999999999999999999999.pt",
    "step-9223372036854775808.pt",
    "step5x.pt",
    "step_0x1F.pt",
    "resnet_50.pth",
    "step_1e30.pt",
    "step_1e-3.pt",
    "model_50_steps_10.pt",
    "iteration_5_iter_7.pt",
    "train_100epochs_epoch_10.pth",
    "step_1,2.pt",
    "model_12345678901234567890.pt",
    "step_10e.pt",
    "epoch_3.5.pt",
    "model_3_iters_10.pt",
    "step_99999999999999999999e5.pt",
]


@pytest.mark.parametrize(("name", "step"), STEPS.items())
def test_the_step_is_read_from_the_name(name: str, step: int) -> None:
    assert step_of(Path("some/step-77/folder") / name) == step


@pytest.mark.parametrize("name", NO_STEPS)
def test_other_numbers_are_no_steps(name: str) -> None:
    assert step_of(Path(name)) is None


@pytest.mark.parametrize("name", REFUSED)
def test_a_name_that_is_not_clear_is_refused_with_the_remedy(name: str) -> None:
    with pytest.raises(CheckpointError, match=r"checkpoints\.pattern") as caught:
        step_of(Path(name))
    assert str(caught.value).isprintable()


BESIDE = [
    *("resnet18", "cifar10", "v2", "seed0", "model3", "lenet5", "fp16", "224x224", "gpt2", "bs32"),
    *("acc_93.5", "val_loss=0.12", "lr_0.1", "wd_5e-4", "lr=3e-4", "seed_3", "2024-05-01", "bs_64"),
    *("20240501", "fold_3", "val_acc=93", "top1_76.2", "loss0.25", "run_4", "dropout_0.5", "rank0"),
    *("ema", "best", "final", "net", "checkpoint", "weights"),
]
KEYWORDS = ["step", "global_step", "steps", "timestep", "Step", "iteration", "iter", "epoch", "ep"]


@pytest.mark.parametrize("seed", range(150))
def test_what_stands_beside_a_keyword_does_not_count(seed: int) -> None:
    draw = random.Random(seed)
    step, keyword = draw.randrange(10 ** draw.randint(1, 9)), draw.choice(KEYWORDS)
    number = draw.choice([str(step), f"{step:08d}"])
    words = draw.sample(BESIDE, draw.randint(0, 4))
    words.insert(
        draw.randint(0, len(words)), f"{keyword}{draw.choice(['', '_', '-', '='])}{number}"
    )
    name = draw.choice("_-").join(words) + draw.choice([".pt", ".pth.tar", ".ckpt", ".safetensors"])
    assert step_of(Path(name)) == step, name


@pytest.mark.parametrize("seed", range(100))
def test_a_number_by_itself_counts_where_it_is_the_only_one(seed: int) -> None:
    draw = random.Random(seed)
    step = draw.randrange(10 ** draw.randint(1, 7))
    # Six digits after such a date are a time of day.
    words = draw.sample([one for one in BESIDE if one != "20240501"], draw.randint(0, 3))
    name = "_".join(["model", *words, draw.choice([str(step), f"{step:06d}"])]) + ".pt"
    assert step_of(Path(name)) == step, name
    with pytest.raises(CheckpointError, match="compete"):
        step_of(Path(f"{step + 1}_{name}"))


# -- folders ---------------------------------------------------------------------------------


def touched(folder: Path, *names: str) -> Path:
    for name in names:
        torch.save({"w": torch.ones(1)}, folder / name)
    return folder


def test_checkpoints_are_ordered_by_number_and_other_files_are_passed_over(tmp_path: Path) -> None:
    others = (
        "notes-3.txt",
        ".step-4.pt",
        "final.pt",
        "step-5.partial",
        "step-6.pt.tmp",
        "last.ckpt",
    )
    mine = ("step-10.pt", "step-2.pt", "model_0050.pth", "epoch=1-step=7.ckpt", "step1k.t7")
    touched(tmp_path, *mine, *others, "optimizer_10.pt", "rng_state_0.pth", "training_args.bin")
    (tmp_path / "tmp-checkpoint-9").mkdir()
    assert [(at.step, at.path.name) for at in find_checkpoints(tmp_path)] == [
        (2, "step-2.pt"),
        (7, "epoch=1-step=7.ckpt"),
        (10, "step-10.pt"),
        (50, "model_0050.pth"),
        (1000, "step1k.t7"),
    ]


@pytest.mark.parametrize(
    "names",
    [
        ("step-10.pt", "step-00000010.safetensors"),
        ("epoch=0-step=10.ckpt", "epoch=0-step=10-v1.ckpt"),
        ("step_10.pt", "step_10_ema.pt"),
        ("G_10.pth", "D_10.pth"),
    ],
)
def test_two_checkpoints_of_one_step_are_both_named(tmp_path: Path, names: tuple[str, str]) -> None:
    touched(tmp_path, *names, "step-2.pt")
    with pytest.raises(CheckpointError, match=r"both of step 10.*checkpoints\.pattern") as caught:
        find_checkpoints(tmp_path)
    assert all(name in str(caught.value) for name in names)


@pytest.mark.parametrize(
    "names", [("epoch_1.pt", "step_100.pt"), ("epoch_1.pt", "iter_9.pt"), ("ep2.pt", "model_7.pt")]
)
def test_epochs_beside_steps_are_refused(tmp_path: Path, names: tuple[str, str]) -> None:
    touched(tmp_path, *names)
    with pytest.raises(CheckpointError, match=r"different things.*checkpoints\.pattern"):
        find_checkpoints(tmp_path)


@pytest.mark.parametrize(
    ("folder", "says"), [("absent", "does not exist"), (".", "holds no checkpoint")]
)
def test_a_missing_and_an_empty_folder_are_named(tmp_path: Path, folder: str, says: str) -> None:
    with pytest.raises(CheckpointError, match=says) as caught:
        find_checkpoints(tmp_path / folder)
    assert str(tmp_path / folder) in str(caught.value)
    assert "hessdist train" in str(caught.value)


def test_files_without_a_step_are_named(tmp_path: Path) -> None:
    touched(tmp_path, "model_best.pth", "last.ckpt")
    with pytest.raises(CheckpointError, match=r"last.ckpt, model_best.pth; .*checkpoints\.pattern"):
        find_checkpoints(tmp_path)


# -- patterns --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "steps"),
    [
        (r"model_(?P<step>\d+)_", [5, 50]),
        (r"model_\d+_(?P<step>\d+)\.pt$", [1, 2]),
        (r"(?P<step>\d+)-raw$", [8]),
        (r"^G_(?P<step>[0-9,]+)", [1000]),
    ],
)
def test_a_pattern_tells_which_names_and_which_number(
    tmp_path: Path, pattern: str, steps: list[int]
) -> None:
    names = (
        "model_5_1.pt",
        "model_50_2.pt",
        "G_1,000.pth",
        "D_1000.pth",
        "net-8-raw",
        "model_9.txt",
    )
    touched(tmp_path, *names)
    assert [at.step for at in find_checkpoints(tmp_path, pattern)] == steps
    watched = Watched(tmp_path, 0, None, None, pattern)
    watched.look()
    assert [at.step for at in watched.look()] == steps
    with pytest.raises(CheckpointError):
        scan_checkpoints(tmp_path)


def test_a_pattern_that_matches_no_name_and_one_that_matches_no_number_are_refused(
    tmp_path: Path,
) -> None:
    touched(tmp_path, "model_5.pt")
    with pytest.raises(CheckpointError, match=r"holds no checkpoint .* it holds model_5\.pt"):
        find_checkpoints(tmp_path, "step(?P<step>[0-9]+)")
    for pattern in ("(?P<step>model)", "model_5(?P<step>x?)", "(?P<step>x)?model"):
        with pytest.raises(CheckpointError, match="must match a whole number"):
            find_checkpoints(tmp_path, pattern)


JOB = """
model = {{factory = "mlp"}}
data = {{dataset = "digits"}}
output = {{path = "out.h5"}}
[checkpoints]
directory = "ck"
pattern = '{pattern}'
"""


@pytest.mark.parametrize(
    ("pattern", "says"),
    [
        ("step([0-9]+)", "no group 'step'"),
        ("(?P<steps>[0-9]+)", "no group 'step'"),
        ("(?P<step>[0-9]+", "not a regular expression"),
        ("*(?P<step>[0-9]+)", "not a regular expression"),
    ],
)
def test_a_pattern_is_checked_with_the_job(pattern: str, says: str) -> None:
    with pytest.raises(JobError, match=says) as caught:
        parse_job(JOB.format(pattern=pattern), "job.toml")
    assert "checkpoints" in str(caught.value)


def test_a_job_has_a_pattern_a_key_and_a_prefix() -> None:
    text = JOB.format(pattern="(?P<step>[0-9]+)") + 'key = "ema"\nprefix = "net."\n'
    section = parse_job(text, "job.toml")[0].checkpoints
    assert section.pattern == "(?P<step>[0-9]+)"
    assert section.place() == {"key": "ema", "prefix": "net."}


PIECES = [
    *("step", "steps", "epoch", "ep", "iter", "ckpt", "model", "k", "M", "e", "-", "_", "=", "."),
    *(",", "(", " ", "1", "05", "000", "2024-05-01", "1e3", "1.5", "-of-", "v1", "seed", "rng"),
    *("\n", "İ", "٣", "thousand", "num", "lr", "99999999999999999999", "e-", "resnet", "50", ".pt"),
]


def test_any_name_has_a_step_or_none_or_is_one_line() -> None:
    for seed in range(5000):
        draw = random.Random(seed)
        name = "".join(draw.choices(PIECES, k=draw.randint(1, 12)))
        try:
            step = step_of(Path(name))
        except CheckpointError as error:
            assert str(error).isprintable(), name  # noqa: PT017 - most names raise nothing
        else:
            assert step is None or 0 <= step < 2**63, name
