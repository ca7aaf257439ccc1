"""A Nucleotide Transformer with a task on top: mean over its tokens, one linear layer, all of it fine-tuned.

Shape suffixes: B batch, L letters, T tokens, D width.
"""

from torch import Tensor

from had.dna.alphabet import NUCLEOTIDE_OFFSET, decode
from had.dna.tokenizers import KmerTokenizer
from had.models.heads import HeadConfig, SequenceClassifier
from had.models.nucleotide_transformer import NucleotideTransformer


class TeacherForSequenceClassification(SequenceClassifier):
    """A Nucleotide Transformer as classifier.

    It takes student token ids as the other classifiers do and reads them as the publisher's tokenizer would: 6-mers
    from the first letter on, single letters behind the last whole one and around an N.

    Parameters
    ----------
    config
        Task and classes.
    network
        Taken over and made trainable; its language-model head is dropped.
    """

    def __init__(self, config: HeadConfig, network: NucleotideTransformer) -> None:
        del network.head_dense, network.head_norm, network.decoder
        network.requires_grad_(True)
        super().__init__(config, ("network", network), network.config.hidden_size, network.config.initializer_range)
        self.network: NucleotideTransformer
        self._tokenizer = KmerTokenizer()

    def tokens(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """6-mer token ids (B, T), ``<cls>`` first, and their mask (B, T), of student token ids (B, L).

        Tokens behind the longest input of the network are left out.
        """
        codes = (input_ids - NUCLEOTIDE_OFFSET).cpu().numpy()
        if attention_mask is None:
            rows = list(codes)
        else:
            real = attention_mask.cpu().numpy() != 0
            rows = [row[mask] for row, mask in zip(codes, real, strict=True)]
        longest = self.network.config.max_tokens
        found = self._tokenizer([decode(row) for row in rows], return_tensors="pt")
        return tuple(found[name][:, :longest].to(self.device) for name in ("input_ids", "attention_mask"))

    def pool(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Mean (B, D) float32 of the last layer over the tokens of each row, ``<cls>`` left out."""
        ids_BT, mask_BT = self.tokens(input_ids, attention_mask)
        states_BTD = self.network.last_hidden_state(ids_BT, None if bool(mask_BT.all()) else mask_BT).float()
        weights = mask_BT[:, 1:, None].to(states_BTD.dtype)
        return (states_BTD[:, 1:] * weights).sum(1) / weights.sum(1).clamp_min(1)
