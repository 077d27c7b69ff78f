"""Encodes prompts so that a user's text never becomes special tokens.

A tokenizer recognises its special tokens in any text. In a template they are intended; in a transcript ``<|im_end|>``,
``</s>`` or ``sop`` are words that somebody said or wrote. So a prompt is a sequence of pieces, each marked as template or
quoted text.
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
    """A part of a prompt: from its template, or quoted from a user (a transcript, a speaker's name, an earlier turn)."""

    text: str
    quoted: bool = False


def join_pieces(pieces: Sequence[Piece]) -> str:
    """The text of all pieces."""
    return "".join(piece.text for piece in pieces)


@dataclass
class VerbatimEncoder:
    """Encodes pieces; only those of the template may become special tokens.

    Where no quoted text spells a special token, the ids are the tokenizer's for the whole text, merges across pieces
    included. Where one does, a copy of the tokenizer encodes it whose special tokens have secret random names; they
    replace the special tokens of the template.
    """

    tokenizer: PreTrainedTokenizerBase
    _structure: dict[int, str] = field(init=False, repr=False)
    _template_structure: dict[str, list[int]] = field(default_factory=dict, init=False, repr=False)
    _renamed_tokenizer: _RenamedTokenizer | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        added = {token_id: token for token_id, token in self.tokenizer.added_tokens_decoder.items() if _is_structural(token)}
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
        ids = self._ids(join_pieces(pieces))
        if not any(piece.quoted for piece in pieces):
            return ids
        intended = [token_id for piece in pieces if not piece.quoted for token_id in self._structure_of_template(piece.text)]
        if self._structure_of(ids) == intended:
            return ids
        if self.tokenizer.is_fast:
            if self._renamed_tokenizer is None:
                # transformers 5.23: `backend_tokenizer` exists on fast tokenizers alone, which the base class does not say.
                backend: Tokenizer = getattr(self.tokenizer, "backend_tokenizer")  # noqa: B009
                self._renamed_tokenizer = _RenamedTokenizer.from_tokenizer(backend, self._structure)
            ids = self._renamed_tokenizer.encode(pieces)
        else:
            ids = [token_id for piece in pieces for token_id in self._ids(piece.text, piece.quoted)]
        if self._structure_of(ids) != intended:
            quoted = next(piece.text for piece in pieces if piece.quoted)
            raise UserError(f"the tokenizer cannot write {quoted[:80]!r} without special tokens; take them out of the text")
        return ids

    def _ids(self, text: str, split_special_tokens: bool = False) -> list[int]:
        options = {"split_special_tokens": True} if split_special_tokens else {}
        return list(self.tokenizer(text, add_special_tokens=False, **options)["input_ids"])

    def _structure_of(self, ids: Sequence[int]) -> list[int]:
        return [token_id for token_id in ids if token_id in self._structure]

    def _structure_of_template(self, text: str) -> list[int]:
        if text not in self._template_structure:
            self._template_structure[text] = self._structure_of(self._ids(text))
        return self._template_structure[text]


def _is_structural(token: AddedToken) -> bool:
    """Whether an added token is markup. A line end or a word that was added to the vocabulary is text."""
    return bool(token.special) or not (token.content.isspace() or token.content.isalnum())


@dataclass
class _RenamedTokenizer:
    """A copy of a fast tokenizer that recognises its structural tokens only by secret names.

    Attributes:
        names: secret name by token id. ids: the original id of an added token, by its id in the copy.
    """

    backend: Tokenizer
    source: Tokenizer
    names: dict[int, str]
    ids: dict[int, int]

    @classmethod
    def from_tokenizer(cls, source: Tokenizer, structure: dict[int, str]) -> _RenamedTokenizer:
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
            merged = {part for merge in description["model"].get("merges", ()) for part in _merge_parts(merge)}
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
        text = "".join(piece.text if piece.quoted else self._rename_structure(piece.text) for piece in pieces)
        return [self.ids.get(i, i) for i in self.backend.encode(text, add_special_tokens=False).ids]

    def _rename_structure(self, text: str) -> str:
        """The text of a template in which structural tokens are replaced by their secret names."""
        encoding = self.source.encode(text, add_special_tokens=False)
        found, last = [], 0
        for token_id, (start, stop) in zip(encoding.ids, encoding.offsets, strict=True):
            if token_id in self.names:
                found += [text[last:start], self.names[token_id]]
                last = stop
        return "".join([*found, text[last:]])


def _merge_parts(merge: str | list[str]) -> list[str]:
    parts = merge.split(" ") if isinstance(merge, str) else merge
    return [*parts, "".join(parts)]
