"""Music of any length: made whole, made while it plays, or made out of music that is there."""

from musiccm.bounds import MAX_STREAM_S, MAX_WHOLE_S, check_duration, check_text, check_texts
from musiccm.long_form.clip import ClipLength, SourceClip, read_clip
from musiccm.long_form.compose import check_batch, compose, decode_whole
from musiccm.long_form.decode import MelDecoder, PieceDecoder, encode_piece
from musiccm.long_form.direct import DirectDecoder, piece_decoder
from musiccm.long_form.edit import Editor
from musiccm.long_form.edited import Edited
from musiccm.long_form.encode import encode_sound
from musiccm.long_form.finishing import finished
from musiccm.long_form.methods import LongMusic
from musiccm.long_form.model import MusicModel
from musiccm.long_form.piece import Piece
from musiccm.long_form.prompts import PromptPlan, Prompts, require_whole
from musiccm.long_form.seams import SeamMetrics, seam_metrics
from musiccm.long_form.stream import MusicStream

__all__ = [
    "MAX_STREAM_S",
    "MAX_WHOLE_S",
    "ClipLength",
    "SourceClip",
    "DirectDecoder",
    "Edited",
    "Editor",
    "LongMusic",
    "MelDecoder",
    "MusicModel",
    "MusicStream",
    "PieceDecoder",
    "PromptPlan",
    "Prompts",
    "Piece",
    "SeamMetrics",
    "check_batch",
    "check_duration",
    "check_text",
    "check_texts",
    "compose",
    "decode_whole",
    "encode_piece",
    "encode_sound",
    "finished",
    "piece_decoder",
    "read_clip",
    "require_whole",
    "seam_metrics",
]
