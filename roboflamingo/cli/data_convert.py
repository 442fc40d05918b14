"""`roboflamingo data convert`: a data set of one kind is written as another."""

from __future__ import annotations

import dataclasses
from typing import get_args

from jsonargparse import ArgumentParser, Namespace

from roboflamingo.data.lerobot.files import WriteSettings

USAGE = "--from PATH --to FOLDER --format {lerobot,calvin} [--KEY VALUE ...]"


def convert_options(parser: ArgumentParser) -> None:
    """What the action can be told."""
    default = WriteSettings()
    parser.add_argument("--from", type=str, required=True, help="a data set of any kind: a folder or a file")
    parser.add_argument("--to", type=str, required=True, help="the folder to write; nothing may be there")
    parser.add_argument(
        "--format", choices=["lerobot", "calvin"], required=True,
        help="lerobot: LeRobotDataset v3.0, an episode for every annotated segment. calvin: from such a set",
    )  # fmt: skip
    parser.add_argument(
        "--images", choices=["video", "png"], default=default.images, help="lerobot: video is small, png is exact"
    )
    parser.add_argument(
        "--quality", type=int, default=default.quality, help="lerobot: of videos, from 0 (best) to 51 (smallest)"
    )
    parser.add_argument(
        "--pix_fmt", choices=["yuv420p", "yuv444p"], default=default.pix_fmt,
        help="lerobot: of videos: 420 has colours at half the resolution and plays everywhere, 444 has them whole",
    )  # fmt: skip
    parser.add_argument(
        "--key_frame_every", type=int, default=default.key_frame_every,
        help="lerobot: frames; reading a video at random begins at a key frame",
    )  # fmt: skip
    parser.add_argument(
        "--numbers", choices=["float32", "recorded"], default=default.numbers,
        help="lerobot: float32 as its policies take them, or the type in which they were recorded",
    )  # fmt: skip
    parser.add_argument("--kind", type=str, default=None, help="of the data set, where its path would not tell")
    parser.add_argument(
        "--language", type=str, default="lang_annotations", help="CALVIN: the sub-folder of annotations"
    )
    parser.add_argument(
        "--segment_ends", choices=["exclusive", "inclusive"], default="exclusive",
        help="CALVIN: whether a segment's end is the frame after its last, or its last",
    )  # fmt: skip
    parser.add_argument("--processes", type=int, default=None, help="that work at once; one a core by default")


def convert(options: Namespace) -> None:
    """Converts, and says what is lost.

    Raises:
        UserError: the data set is damaged, lacks what the format needs, or something lies in the way.
    """
    from calvin_eval.system.errors import UserError
    from roboflamingo.data.converting.convert import Target
    from roboflamingo.data.converting.convert import convert as write
    from roboflamingo.data.places import folder_at
    from roboflamingo.data.sources.base import SourceOptions

    if options.processes is not None and options.processes < 1:
        raise UserError(f"--processes is {options.processes}; it must be at least 1")
    assert options.format in get_args(Target)
    fields = [field.name for field in dataclasses.fields(WriteSettings) if field.name in options]
    settings = WriteSettings(**{name: options[name] for name in fields})
    source, target = folder_at(options["from"]), folder_at(options.to)
    reading = SourceOptions(language=options.language, segment_ends=options.segment_ends)
    lost = write(source, target, options.format, settings, reading, kind=options.kind, processes=options.processes)
    print(f"{target}: written")
    for sentence in lost:
        print(f"  {sentence}")
