"""python -m jaxvision.transfer: measure what a checkpoint is worth on other data sets, beside training from scratch."""

from __future__ import annotations

from typing import Any

from jaxvision import cli
from jaxvision.errors import UserError


def transfer(argv: list[str]) -> dict[str, Any]:
    parser = cli.Parser(
        "jaxvision.transfer",
        "Measure one checkpoint on several data sets: k-NN and linear probe on its frozen features, and fine-tuning\n"
        "beside training the same network from scratch with the same budget, over several seeds.",
        [
            "python -m jaxvision.transfer --from runs/simclr --to digits:train,digits:test",
            "python -m jaxvision.transfer --from runs/a --to folder:pets --to 'csv:cells.csv' --seeds 5 --steps 1000",
            "python -m jaxvision.transfer --from runs/simclr --to digits:train,digits:test --per-class 5,10 --seeds 5",
            "python -m jaxvision.transfer --from timm:resnet50.a1_in1k=model.safetensors --vtab",
        ],
    )
    parser.add_from()
    add = parser.add_argument
    add("--to", action="append", default=[], metavar="TRAIN[,TEST]", help="learn from one source and test on another; "
        "without TEST a fifth is held out")  # fmt: skip
    add("--vtab", action="store_true", help="add the tasks of VTAB-1k whose data sets are prepared")
    add("--per-class", default="", metavar="A,B", help="learn from so many images of each class, "
        "other ones for each seed; several numbers are several rows")  # fmt: skip
    add("--out", default="runs/transfer", metavar="DIR", help="default runs/transfer; goes on there")
    add("--seeds", type=int, default=3, metavar="N", help="of fine-tuning and of scratch; default 3")
    add("--steps", type=int, default=500, metavar="N", help="of each training; default 500")
    add("--batch-size", type=int, default=64, metavar="N", help="default 64")
    add("--lr", default="0.003,0.03", metavar="A,B", help="rates that both choose from, by a fifth of the training "
        "data held out; default 0.003,0.03")  # fmt: skip
    add("--freeze", type=float, default=0.5, metavar="SHARE", help="of the steps of fine-tuning in which the new last "
        "layer learns alone; default 0.5")  # fmt: skip
    add("--config.KEY=VALUE", dest="_", action="append", metavar="", help="override a key of both trainings' config")
    arguments, overrides = parser.parse(argv, prefix="config")
    parser.need_positive(arguments, "seeds", "steps", "batch_size")
    if not 0 <= arguments.freeze < 1:
        raise UserError(f"--freeze is {arguments.freeze}: it is a share of the steps, in [0, 1)")
    say = cli.printer(arguments)
    rates, shots = _rates(arguments.lr), _shots(arguments.per_class)
    if len(rates) > 1 and shots and min(shots) < 5:
        raise UserError(
            f"--per-class {arguments.per_class}: of fewer than 5 images a class none are held out to choose a rate by: "
            "give one, as --lr 0.003"
        )

    from jaxvision.training import restore, transfer

    found = restore.find(arguments.source, arguments.checkpoint, say)
    sets = [transfer.data_set(text) for text in arguments.to] + (transfer.vtab_sets(say) if arguments.vtab else [])
    options = transfer.Options(
        arguments.source, arguments.seeds, arguments.steps, arguments.batch_size, rates, arguments.freeze, overrides
    )
    return transfer.compare(found, sets, arguments.out, options, shots=shots, say=say)


def _rates(text: str) -> list[float]:
    try:
        rates = [float(part) for part in text.split(",")]
    except ValueError:
        raise UserError(f"--lr {text}: expected numbers like 0.003,0.03") from None
    if not all(0 < rate < float("inf") for rate in rates):
        raise UserError(f"--lr {text}: rates must be above 0, and finite")
    return rates


def _shots(text: str) -> list[int]:
    shots = text.split(",") if text else []
    if not all(part.isdecimal() and int(part) > 0 for part in shots):
        raise UserError(f"--per-class {text}: expected numbers like 1,5,10")
    return [int(part) for part in shots]


if __name__ == "__main__":
    cli.main(transfer)
