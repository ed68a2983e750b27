"""Little World in a terminal: python -m littleworld make, sample, score, check, ..."""

import argparse
import json
import math
import re
import sys
import tempfile
from pathlib import Path

from littleworld.corpus import figures, write_corpus
from littleworld.world import World


def main(arguments=None):
    args = parser().parse_args(arguments)
    try:
        return args.run(args)
    except (ValueError, OSError) as error:
        print(f"littleworld: {error}", file=sys.stderr)
        return 2


def parser():
    top = argparse.ArgumentParser(prog="littleworld", description=__doc__)
    commands = top.add_subparsers(
        required=True, metavar="make|sample|score|check|figures|checksums"
    )

    make = commands.add_parser("make", help="write the corpus into a folder")
    make.add_argument("folder", type=Path)
    make.add_argument("--documents", type=int, default=80_000)
    make.add_argument("--conversations", type=int, default=12_000)
    make.set_defaults(run=run_make)

    sample = commands.add_parser("sample", help="print documents and their bits")
    sample.add_argument("--count", type=int, default=3)
    sample.set_defaults(run=run_sample)

    for name, run, help in (
        ("score", run_score, "the exact bits of a text"),
        ("check", run_check, "right, inconsistent or ungrammatical, and where"),
    ):
        command = commands.add_parser(name, help=help)
        command.add_argument("text", nargs="?", help="the text; else standard input")
        command.set_defaults(run=run)

    weigh = commands.add_parser("figures", help="bytes and bits by kind, and packers")
    weigh.set_defaults(run=run_figures)

    sums = commands.add_parser("checksums", help="write those of data/README.md anew")
    sums.set_defaults(run=run_checksums)

    for command in commands.choices.values():
        command.add_argument("--dial", default="small", help="a name of dials.toml")
        command.add_argument("--seed", type=int, default=0)
    return top


def text_of(args):
    return sys.stdin.read().rstrip("\n") if args.text is None else args.text


def run_make(args):
    about = write_corpus(
        args.folder, args.documents, args.conversations, dial=args.dial, seed=args.seed
    )
    print(json.dumps(about, indent=2))
    return 0


def run_sample(args):
    world = World(args.dial)
    for seed in range(args.seed, args.seed + args.count):
        document = world.sample(seed)
        print(f"[{document.kind}, {document.bits:.2f} bits]\n{document.text}\n")
    return 0


def run_figures(args):
    found = figures(args.dial, seed=args.seed)
    rows = list(found["kinds"].items())
    rows.append(("all", tuple(map(sum, zip(*found["kinds"].values(), strict=True)))))
    print("| documents | share | bytes | bits | bits per byte |\n|--|--|--|--|--|")
    for kind, (count, size, bits) in rows:
        share = count / rows[-1][1][0]
        means = f"{size / count:.0f} | {bits / count:.1f} | {bits / size:.4f}"
        print(f"| {kind} | {share:.0%} | {means} |")
    print(", ".join(f"{name} {bits:.3f}" for name, bits in found["packed"].items()))
    return 0


def run_checksums(args):
    """Put the checksums of a small corpus into the table of data/README.md."""
    readme = Path(__file__).parents[1] / "README.md"
    with tempfile.TemporaryDirectory() as folder:
        about = write_corpus(folder, 2000, 900, dial=args.dial, seed=args.seed)
    text = readme.read_text(encoding="utf-8")
    for name, file in about["files"].items():
        row = f"| `{name}` | {file['rows']:,} | `{file['sha256']}` |"
        text = re.sub(rf"\| `{name}` \| [\d,]+ \| `\w{{64}}` \|", row, text)
    readme.write_text(text, encoding="utf-8")
    return 0


def run_score(args):
    world, text = World(args.dial), text_of(args)
    bits = world.score(text)
    if bits == math.inf:
        position = world.leaves(text)
        rest = text[position:][:30]
        print(f"not of this world: it leaves it at {position}, {rest!r}")
        return 1
    print(f"{bits:.4f} bits, {bits / len(text.encode()):.4f} bits per byte")
    return 0


def run_check(args):
    world, text = World(args.dial), text_of(args)
    verdict = world.check(text)
    if verdict.right:
        print(f"right: a document of kind {verdict.kind}")
    elif verdict.grammatical:
        for slot, wanted, got, position in verdict.faults:
            print(f"inconsistent at {position}: {slot} is {got!r}, wanted {wanted!r}")
    elif verdict.reached == len(text):
        print(f"ungrammatical: it breaks off after {len(text)} characters")
    else:
        position = verdict.reached
        print(f"ungrammatical from {position}: {text[position:][:30]!r}")
    return 0 if verdict.right else 1


if __name__ == "__main__":
    sys.exit(main())
