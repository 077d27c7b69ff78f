"""Token ids of prompts in which the words of a user never become structure.

A tokenizer cuts its special tokens out of any text it is given. In a template they are meant; in a transcript
``<|im_end|>``, ``</s>`` or ``sop`` are words that somebody said or wrote. So a prompt is a sequence of pieces that know
whose words they are.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field

from tokenizers import AddedToken, Tokenizer
from transformers import PreTrainedTokenizerBase

from llm_mer.errors import UserError


@dataclass(frozen=True)
class Piece:
    """A stretch of a prompt: of its template, or quoted from a user (a transcript, a speaker's name, an earlier turn)."""

    text: str
    quoted: bool = False


def joined(pieces: Sequence[Piece]) -> str:
    """The text of pieces, whoever wrote it."""
    return "".join(piece.text for piece in pieces)


@dataclass
class VerbatimEncoder:
    """Encodes pieces without special tokens of the tokenizer's own.

    Where no quoted text spells a special token, the ids are the tokenizer's for the whole text, with merges over the seams.
    Where one does, the same tokenizer without special tokens encodes it, those of the template under names that nobody
    can know.
    """

    tokenizer: PreTrainedTokenizerBase
    _structure: dict[int, str] = field(init=False, repr=False)
    _meant: dict[str, list[int]] = field(default_factory=dict, init=False, repr=False)
    _plain: _PlainTokenizer | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        added = {token_id: token for token_id, token in self.tokenizer.added_tokens_decoder.items() if _is_structure(token)}
        named = zip(self.tokenizer.all_special_ids, self.tokenizer.all_special_tokens, strict=True)
        self._structure = {**dict(named), **{token_id: token.content for token_id, token in added.items()}}
        unknown = self.tokenizer.unk_token_id
        if unknown is not None:  # stands for any character that the vocabulary lacks
            self._structure.pop(int(unknown), None)

    def encode(self, pieces: Sequence[Piece]) -> list[int]:
        """Token ids of the pieces as one text.

        Raises:
            UserError: a tokenizer without a fast form cannot write the quoted words otherwise than as special tokens.
        """
        ids = self._ids(joined(pieces))
        if not any(piece.quoted for piece in pieces):
            return ids
        meant = [token_id for piece in pieces if not piece.quoted for token_id in self._meant_by(piece.text)]
        if self._structure_of(ids) == meant:
            return ids
        if self.tokenizer.is_fast:
            if self._plain is None:
                # transformers 5.23: `backend_tokenizer` exists on fast tokenizers alone, which the base class does not say.
                backend: Tokenizer = getattr(self.tokenizer, "backend_tokenizer")  # noqa: B009
                self._plain = _PlainTokenizer.of(backend, self._structure)
            ids = self._plain.encode(pieces)
        else:
            ids = [token_id for piece in pieces for token_id in self._ids(piece.text, piece.quoted)]
        if self._structure_of(ids) != meant:
            quoted = next(piece.text for piece in pieces if piece.quoted)
            raise UserError(f"the tokenizer cannot write {quoted[:80]!r} without special tokens; take them out of the text")
        return ids

    def _ids(self, text: str, split_special_tokens: bool = False) -> list[int]:
        options = {"split_special_tokens": True} if split_special_tokens else {}
        return list(self.tokenizer(text, add_special_tokens=False, **options)["input_ids"])

    def _structure_of(self, ids: Sequence[int]) -> list[int]:
        return [token_id for token_id in ids if token_id in self._structure]

    def _meant_by(self, text: str) -> list[int]:
        if text not in self._meant:
            self._meant[text] = self._structure_of(self._ids(text))
        return self._meant[text]


def _is_structure(token: AddedToken) -> bool:
    """Whether an added token is markup; a line end or a whole word that was added to a vocabulary is text."""
    return bool(token.special) or not (token.content.isspace() or token.content.isalnum())


@dataclass
class _PlainTokenizer:
    """A fast tokenizer whose structural tokens answer to secret names alone.

    Attributes:
        names: secret name by token id. ids: of the copy's added tokens, by their id in the copy.
    """

    backend: Tokenizer
    source: Tokenizer
    names: dict[int, str]
    ids: dict[int, int]

    @classmethod
    def of(cls, source: Tokenizer, structure: dict[int, str]) -> _PlainTokenizer:
        nonce = secrets.token_hex(8)
        names = {token_id: f"\ue000{nonce}{token_id}\ue001" for token_id in structure}
        description = json.loads(source.to_str())
        added, description["added_tokens"] = description["added_tokens"], []
        for part in ("post_processor", "truncation", "padding"):
            description[part] = None
        vocabulary = description["model"]["vocab"]
        if isinstance(vocabulary, list):  # Unigram, which would choose a special token that is among its pieces
            for token_id in names:
                if token_id < len(vocabulary) and vocabulary[token_id][0] == structure[token_id]:
                    vocabulary[token_id][0] = names[token_id]
        else:
            merged = {part for merge in description["model"].get("merges", ()) for part in _parts(merge)}
            for token_id, content in structure.items():
                if vocabulary.get(content) == token_id and content not in merged:
                    vocabulary[names[token_id]] = vocabulary.pop(content)
        backend = Tokenizer.from_str(json.dumps(description))
        known = set(backend.get_vocab(with_added_tokens=False).values())
        ids = {}
        for entry in added:
            options = {name: entry[name] for name in ("single_word", "lstrip", "rstrip", "normalized", "special")}
            if entry["id"] in names:
                options["single_word"] = False  # its place is known; what stands around it does not matter
            content = names.get(entry["id"], entry["content"])
            backend.add_tokens([AddedToken(content, **options)])
            place = backend.token_to_id(content)
            if place is None or (place in known and place != entry["id"]):
                raise UserError(f"the tokenizer numbers {entry['content']!r} like another token")
            ids[place] = int(entry["id"])
        return cls(backend, source, names, ids)

    def encode(self, pieces: Sequence[Piece]) -> list[int]:
        text = "".join(piece.text if piece.quoted else self._renamed(piece.text) for piece in pieces)
        return [self.ids.get(i, i) for i in self.backend.encode(text, add_special_tokens=False).ids]

    def _renamed(self, text: str) -> str:
        """The text of a template with the secret names of its structural tokens."""
        encoding = self.source.encode(text, add_special_tokens=False)
        found, last = [], 0
        for token_id, (start, stop) in zip(encoding.ids, encoding.offsets, strict=True):
            if token_id in self.names:
                found += [text[last:start], self.names[token_id]]
                last = stop
        return "".join([*found, text[last:]])


def _parts(merge: str | list[str]) -> list[str]:
    parts = merge.split(" ") if isinstance(merge, str) else merge
    return [*parts, "".join(parts)]
