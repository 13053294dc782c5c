"""What the sides of the matrix read: three documents of each, one left alone, two to be spoiled for the controls."""

import zlib
from dataclasses import dataclass
from pathlib import Path

from demo.documents import Document, make_document
from demo.job import CHUNK_TOKENS
from engines.drivers.protocol import Ask
from kvlingua.common.identity.chain import chain_digests
from kvlingua.common.prefix import reusable_tokens
from matrix.cells import Side

KINDS = ("plain", "negated", "flipped")
LENGTH = 450  # tokens: some whole chunks and a part
ANSWER_TOKENS = 8


@dataclass(frozen=True)
class Text:
    """A document with two questions: the producer is asked the first, the consumer the second."""

    kind: str
    document: Document

    @classmethod
    def of(cls, side: Side, kind: str) -> "Text":
        seed = zlib.crc32(f"{side.label} {kind}".encode()) % 900_000  # of its own, whatever other sides there are
        return cls(kind, make_document(seed=seed, length=LENGTH, questions=2))

    def read(self) -> Ask:
        return Ask(self.document.prompt(self.document.questions[0]), max_tokens=ANSWER_TOKENS)

    def reuse(self, salt: str | None = None) -> Ask:
        return Ask(self.document.prompt(self.document.questions[1]), max_tokens=ANSWER_TOKENS, cache_salt=salt)

    def shared(self) -> list[bytes]:
        """Chain digests of the chunks that both prompts begin with."""
        read, reuse = (chain_digests(ask.prompt, CHUNK_TOKENS) for ask in (self.read(), self.reuse()))
        return [digest for digest, other in zip(read, reuse, strict=False) if digest == other]

    def wanted(self, page: int) -> int:
        """h of DESIGN for the consumer: whole stored chunks, one token left to compute, whole pages."""
        return reusable_tokens(len(self.shared()) * CHUNK_TOKENS, len(self.reuse().prompt), page)

    def objects(self, store: Path) -> list[list[Path]]:
        """For each shared chunk, in the text's order, the files of its objects: one for each rank that wrote."""
        return [sorted(store.glob(f"*/{digest.hex()}-*.safetensors")) for digest in self.shared()]


def texts_of(side: Side) -> list[Text]:
    return [Text.of(side, kind) for kind in KINDS]
