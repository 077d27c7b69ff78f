"""SentencePiece BPE models as fast tokenizers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers

from llm_mer.errors import UserError

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6  # SentencePiece's piece types
SPACE = "▁"


@dataclass
class BpeVocabulary:
    """A SentencePiece BPE vocabulary and the normalisation of its text.

    Attributes:
        pieces: piece, score and type, in the order of their ids.
        dummy_prefix: whether a text gets a space in front. remove_extra_spaces: whether repeated spaces become one.
    """

    pieces: list[tuple[str, float, int]]
    dummy_prefix: bool = True
    remove_extra_spaces: bool = False


def read_sentencepiece(path: Path) -> BpeVocabulary:
    """Read a SentencePiece ``.model`` file that a fast tokenizer can reproduce exactly: BPE, no character map.

    Raises:
        UserError: unreadable, damaged, or of a kind that a fast tokenizer would split differently.
    """
    from google.protobuf.message import DecodeError
    from sentencepiece import sentencepiece_model_pb2

    proto: Any = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]
    try:
        proto.ParseFromString(path.read_bytes())
    except OSError as error:
        raise UserError(f"tokenizer {path} cannot be read: {error}") from error
    except DecodeError as error:
        raise UserError(f"tokenizer {path} is not a SentencePiece model: {error}") from None
    trainer, normalizer = proto.trainer_spec, proto.normalizer_spec
    if not proto.pieces:
        raise UserError(f"tokenizer {path} is not a SentencePiece model: it has no pieces")
    if trainer.model_type != trainer.BPE:
        kind = type(trainer).ModelType.Name(trainer.model_type)
        raise UserError(f"tokenizer {path} is a SentencePiece {kind} model; this converter takes BPE")
    if normalizer.precompiled_charsmap:
        raise UserError(f"tokenizer {path} normalises characters ({normalizer.name!r}); this converter takes 'identity'")
    if trainer.treat_whitespace_as_suffix or not normalizer.escape_whitespaces:
        raise UserError(f"tokenizer {path} writes spaces as suffixes or unescaped; this converter takes '▁' prefixes")
    return BpeVocabulary(
        [(piece.piece, piece.score, piece.type) for piece in proto.pieces],
        normalizer.add_dummy_prefix,
        normalizer.remove_extra_whitespaces,
    )


def bpe_tokenizer(vocabulary: BpeVocabulary, path: Path) -> Tokenizer:
    """Convert a SentencePiece BPE vocabulary into a ``tokenizers`` BPE with the same ids and the same splits.

    SentencePiece repeatedly joins the neighbouring pair whose concatenation is the piece with the highest score (leftmost on
    a tie). So each way to write a normal piece as two normal pieces is a merge, ranked by the piece's score. Byte,
    control and unknown pieces are never the result of a merge: "<0x0A>" or "</s>" in a text is ordinary text.

    Normalisation: spaces become ``▁`` and a text that is not empty gets one in front (the dummy prefix). The normaliser sees
    each stretch between special tokens by itself, so each has a dummy prefix of its own.

    Raises:
        UserError: the vocabulary has something that a fast tokenizer cannot reproduce.
    """
    ids = {piece: i for i, (piece, _, _) in enumerate(vocabulary.pieces)}
    if len(ids) != len(vocabulary.pieces):
        raise UserError(f"tokenizer {path} has the same piece twice")
    if any(kind == USER_DEFINED for _, _, kind in vocabulary.pieces):
        # A fast tokenizer splits them off before the dummy prefix is added, SentencePiece afterwards.
        raise UserError(f"tokenizer {path} has user-defined pieces; this converter takes none")
    unknown = [piece for piece, _, kind in vocabulary.pieces if kind == UNKNOWN]
    if len(unknown) != 1:
        raise UserError(f"tokenizer {path} has {len(unknown)} unknown pieces; a SentencePiece model has one")
    scores = {piece: score for piece, score, kind in vocabulary.pieces if kind in (NORMAL, UNUSED)}
    bytes_present = sum(kind == BYTE for _, _, kind in vocabulary.pieces)
    if bytes_present not in (0, 256):
        raise UserError(f"tokenizer {path} has {bytes_present} byte pieces; 0 or 256 would be right")
    merges = []
    for piece, score in scores.items():
        unlisted = [c for c in piece if c not in scores]
        if unlisted and len(piece) > 1:
            # SentencePiece would still join it; a fast tokenizer has already replaced the character by bytes.
            raise UserError(f"tokenizer {path}: piece {piece!r} uses {unlisted[0]!r}, which is no piece itself")
        for cut in range(1, len(piece)):
            if piece[:cut] in scores and piece[cut:] in scores:
                merges.append((-score, -cut, piece[:cut], piece[cut:]))
    merges.sort(key=lambda merge: merge[:2])
    tokenizer = Tokenizer(
        models.BPE(
            ids,
            [(left, right) for _, _, left, right in merges],
            unk_token=unknown[0],
            fuse_unk=True,
            byte_fallback=bytes_present == 256,
        )
    )
    normalising_steps: list[Any] = []
    if vocabulary.remove_extra_spaces:
        # Order matters: SentencePiece strips after it has escaped, so a final "▁" goes as well.
        normalising_steps += [normalizers.Replace(Regex(r"\A +"), ""), normalizers.Replace(Regex(" {2,}"), " ")]
    if vocabulary.dummy_prefix:
        normalising_steps.append(normalizers.Prepend(SPACE))
    normalising_steps.append(normalizers.Replace(" ", SPACE))
    if vocabulary.remove_extra_spaces:
        normalising_steps.append(normalizers.Replace(Regex(rf"{SPACE}+\z"), ""))
    tokenizer.normalizer = normalizers.Sequence(normalising_steps)
    decoding_steps: list[Any] = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if vocabulary.remove_extra_spaces:
        decoding_steps.append(decoders.Strip(" ", 1 << 20, 0))  # SentencePiece then drops every space in front
    elif vocabulary.dummy_prefix:
        decoding_steps.append(decoders.Strip(" ", 1, 0))
    tokenizer.decoder = decoders.Sequence(decoding_steps)
    control = [piece for piece, _, kind in vocabulary.pieces if kind in (UNKNOWN, CONTROL)]
    tokenizer.add_special_tokens([AddedToken(piece, normalized=False, special=True) for piece in control])
    return tokenizer
