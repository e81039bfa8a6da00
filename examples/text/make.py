"""Writes persuasion.txt beside this file: ten chapters of Jane Austen's novel from the R package janeaustenr.

    python make.py [DIRECTORY]

DIRECTORY is the installed package's `data`; the default is where Debian's r-cran-janeaustenr puts it.
Needs rdata; made with version 1.1.0 and janeaustenr 1.0.0.
"""

import sys
import zlib
from pathlib import Path

import rdata

directory = Path(sys.argv[1] if len(sys.argv) > 1 else "/usr/lib/R/site-library/janeaustenr/data")
# R's database of lazily loaded objects: an index of places, each with a length of four bytes and a
# compressed object.
index = rdata.read_rds(directory / "Rdata.rdx")
start, size = (int(n) for n in index["variables"]["persuasion"])
compressed = (directory / "Rdata.rdb").read_bytes()[start : start + size]
data = rdata.parser.parse_data(zlib.decompress(compressed[4:]))
lines = list(rdata.conversion.convert(data))

chapters = slice(lines.index("Chapter 1"), lines.index("Chapter 11"))
text = "\n".join(lines[chapters]).rstrip() + "\n"
assert text.isascii() and text.startswith("Chapter 1\n\n\nSir Walter Elliot, of Kellynch Hall")
Path(__file__).with_name("persuasion.txt").write_text(text)
