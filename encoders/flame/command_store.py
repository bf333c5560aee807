"""`mm flame embed`, `check`, `compress`: stores of text embeddings."""

from __future__ import annotations

import logging
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mm.command import FAILED, OK, CommandParser, emit_json, emit_table, own_device, positive, progress, share
from mm.encoders.flame.command_parts import text_config

logger = logging.getLogger(__name__)


def embed(argv: list[str]) -> int:
    """Embed a table of captions."""
    arguments = _embed_parser().parse_args(argv)

    from mm.data import CaptionTable
    from mm.encoders.flame.store_writer import fill, ready_tower, store_job

    table = CaptionTable(arguments.captions, caption=arguments.column)
    captions = table.captions()
    if not captions:
        raise ValueError(f"{arguments.captions}: none of its {table.without_caption} entries has a caption")
    if table.without_caption:
        logger.warning("%s: %d entries have no caption and are left out", arguments.captions, table.without_caption)
    config = text_config(arguments.model, arguments.layer, arguments.templates)
    tower = ready_tower(config, device=own_device(arguments.device), dtype=arguments.dtype)
    rank, world = share()
    rank = rank if arguments.rank is None else arguments.rank
    world = world if arguments.world is None else arguments.world
    job = store_job(
        arguments.out,
        captions,
        tower,
        arguments.template,
        about=asdict(config),
        shard_items=arguments.shard_items,
        rank=rank,
        world=world,
    )
    start = time.perf_counter()
    bar = progress(f"embedding {len(job):,} captions", len(job.tasks))
    written = fill(job, tower, batch_size=arguments.batch_size, progress=bar)
    seconds = time.perf_counter() - start
    result: dict[str, Any] = {
        "store": arguments.out,
        "captions": len(captions),
        "different": len(set(captions)),
        "without_caption": table.without_caption,
        "embedded_now": written,
        "facets": tower.facets(arguments.template),
        "width": tower.width,
        "process": f"{rank} of {world}",
        "seconds": seconds,
        "captions_per_s": written / seconds if written else None,
    }
    if arguments.parquet:
        from mm.encoders.flame.store import FacetStore

        FacetStore(arguments.out).cache.write_parquet(arguments.parquet)
        result["parquet"] = arguments.parquet
    emit_json(result) if arguments.json else emit_table([result])
    return OK


def _embed_parser() -> CommandParser:
    parser = CommandParser(
        "flame embed",
        about="Embed captions once with a frozen language model. Run it again after an interruption, with more\n"
        "captions, or after a shard was damaged: only what is missing is computed. Under torchrun or SLURM every\n"
        "process takes its own shards: torchrun --nproc-per-node 8 -m mm flame embed ... --device cuda",
        example="mm flame embed captions.csv --model tiny_lm --templates world --template long --out captions.store",
        json_output=True,
    )
    parser.add_argument("captions", metavar="CAPTIONS", help="table: .txt, .csv, .tsv, .json (also COCO's), .jsonl")
    parser.add_argument("--out", required=True, metavar="STORE", help="folder of the store")
    parser.add_argument("--model", required=True, help="language model, or a FLAME model whose text tower is meant")
    parser.add_argument("--layer", help='block that is read, from 1; "38_39" averages two (default: the last)')
    parser.add_argument("--templates", help="template set: official (default) or world")
    parser.add_argument("--template", default="long", help="long (7 facets, default), short (3), single (1)")
    parser.add_argument("--column", help="column of the captions (default: caption, text, title, ...)")
    parser.add_argument("--batch-size", type=positive, default=32, help="captions per pass (default: 32)")
    parser.add_argument("--shard-items", type=positive, default=1024, help="captions per shard (default: 1024)")
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda, mps")
    parser.add_argument("--dtype", help="float16, bfloat16, float32 (default: that of the weights)")
    parser.add_argument("--rank", type=int, help="number of this process (default: from torchrun or SLURM, else 0)")
    parser.add_argument("--world", type=positive, help="how many processes (default: from torchrun or SLURM, else 1)")
    parser.add_argument("--parquet", metavar="FILE", help="also write where each caption lies, as a Parquet table")
    return parser


def check(argv: list[str]) -> int:
    """Compare a store with its checksums."""
    parser = CommandParser(
        "flame check",
        about="Read every shard of a store and compare it with its checksum; exit code 1 if one is damaged.",
        example="mm flame check captions.store",
        json_output=True,
    )
    parser.add_argument("store", metavar="STORE")
    arguments = parser.parse_args(argv)

    from mm.encoders.flame.store import FacetStore

    store = FacetStore(arguments.store)
    damaged = store.cache.check()
    result = {
        "store": arguments.store,
        "captions": len(store),
        "facets": store.facets,
        "width": store.width,
        "rows": store.codec.kind,
        "template": store.template,
        "shards": len(store.cache.numbers),
        "damaged": damaged,
    }
    if arguments.json:
        emit_json(result)
    else:
        emit_table([result | {"damaged": "; ".join(f"{name}: {what}" for name, what in damaged.items()) or "none"}])
    return FAILED if damaged else OK


def compress(argv: list[str]) -> int:
    """A smaller copy of a store."""
    parser = CommandParser(
        "flame compress",
        about="Write the rows of a store in fewer bytes and measure what is lost: cosine to the originals, and the\n"
        "share of true nearest neighbours that the copy still finds.",
        example="mm flame compress captions.store --rows int8 --out captions.int8",
        json_output=True,
    )
    parser.add_argument("store", metavar="STORE")
    parser.add_argument("--out", required=True, help="folder of the copy")
    parser.add_argument("--rows", choices=("int8", "product"), default="int8", help="int8 (default) or product codes")
    parser.add_argument("--part", type=positive, default=8, help="channels per codeword of product codes (default: 8)")
    parser.add_argument("--queries", type=positive, default=500, help="rows that look for neighbours (default: 500)")
    parser.add_argument("--searched", type=positive, default=50_000, help="most rows searched (default: 50000)")
    parser.add_argument("--seed", type=int, default=0, help="of the codewords and the queries")
    arguments = parser.parse_args(argv)
    if Path(arguments.store).resolve() == Path(arguments.out).resolve():
        raise ValueError(f"--out is the store itself ({arguments.store}); name another folder")

    from mm.encoders.flame.store import FacetStore
    from mm.encoders.flame.store_compress import compare
    from mm.encoders.flame.store_compress import compress as write

    store = FacetStore(arguments.store)
    small = write(store, arguments.out, arguments.rows, part=arguments.part, seed=arguments.seed)
    result = compare(store, small, queries=arguments.queries, rows=arguments.searched, seed=arguments.seed)
    result = {"store": arguments.out, "captions": len(small), **result}
    emit_json(result) if arguments.json else emit_table([result])
    return OK
