"""The experts of every token, gated: all of them, or only those whose gate is open."""

import torch
import torch.nn.functional as F
from torch import Tensor, library

from rankmixer_head.per_token_ffn import gelu


def all_experts(
    s_TBD: Tensor, gates_TBE: Tensor, up_TEMD: Tensor, up_bias_TEM: Tensor, down_TEMD: Tensor, down_bias_TED: Tensor
) -> Tensor:
    """`sum_j g_tj (GELU(s_t W1_tj + b1_tj) W2_tj + b2_tj)` for every token t, all experts computed.

    Side by side the experts of a token are one FFN of hidden width E*M whose hidden units are scaled by their expert's
    gate: two batched products, as for a dense FFN.

    Returns:
        (T, B, D), in the type of `s_TBD`.
    """
    hidden_TBM = torch.baddbmm(up_bias_TEM.flatten(1).unsqueeze(1), s_TBD, up_TEMD.flatten(1, 2).mT)
    hidden_TBEM = gelu(hidden_TBM).unflatten(2, up_bias_TEM.shape[1:])
    gates_TBE = gates_TBE.to(hidden_TBEM.dtype)
    scale = torch.mul if torch.is_grad_enabled() else Tensor.mul_
    gated_TBM = scale(hidden_TBEM, gates_TBE.unsqueeze(3)).flatten(2)
    return torch.baddbmm(torch.bmm(gates_TBE, down_bias_TED), gated_TBM, down_TEMD.flatten(1, 2))


def open_experts(
    s_TBD: Tensor, gates_TBE: Tensor, up_TEMD: Tensor, up_bias_TEM: Tensor, down_TEMD: Tensor, down_bias_TED: Tensor
) -> Tensor:
    """The same as `all_experts`, computing an expert for those examples only whose gate for it is positive.

    The examples of every (token, expert) pair stand together as one group of rows: on CUDA in two grouped matrix
    products over all T*E groups, on a CPU group by group through buffers that stay in its cache. Without gradients.
    """
    B = s_TBD.shape[1]
    out_TBD = torch.bmm(gates_TBE.to(s_TBD.dtype), down_bias_TED)
    gates_N = gates_TBE.transpose(1, 2).flatten()  # sorted by token, expert, example
    open_N = gates_N.nonzero().squeeze(1)
    group_N, example_N = open_N // B, open_N % B
    gate_N1 = gates_N.index_select(0, open_N).to(s_TBD.dtype).unsqueeze(1)
    weights = up_TEMD.flatten(0, 1), up_bias_TEM.flatten(0, 1), down_TEMD.flatten(0, 1)
    add = _add_group_by_group if s_TBD.device.type == "cpu" else _add_all_groups
    add(out_TBD, s_TBD, group_N, example_N, gate_N1, *weights)
    return out_TBD


def _add_all_groups(
    out_TBD: Tensor,
    s_TBD: Tensor,
    group_N: Tensor,
    example_N: Tensor,
    gate_N1: Tensor,
    up_GMD: Tensor,
    up_bias_GM: Tensor,
    down_GMD: Tensor,
) -> None:
    T, B, _ = s_TBD.shape
    experts = len(up_GMD) // T
    ends_G = group_N.bincount(minlength=len(up_GMD)).cumsum(0).to(torch.int32)
    row_N = group_N // experts * B + example_N
    hidden_NM = F.grouped_mm(s_TBD.flatten(0, 1).index_select(0, row_N), up_GMD.mT, offs=ends_G)
    hidden_NM = gelu(hidden_NM.add_(up_bias_GM.index_select(0, group_N))).mul_(gate_N1)
    out_TBD.flatten(0, 1).index_add_(0, row_N, F.grouped_mm(hidden_NM, down_GMD, offs=ends_G))


def _add_group_by_group(
    out_TBD: Tensor,
    s_TBD: Tensor,
    group_N: Tensor,
    example_N: Tensor,
    gate_N1: Tensor,
    up_GMD: Tensor,
    up_bias_GM: Tensor,
    down_GMD: Tensor,
) -> None:
    count_G = group_N.bincount(minlength=len(up_GMD)).tolist()
    (most, experts), (M, D) = (max(count_G), len(count_G) // len(s_TBD)), down_GMD.shape[1:]
    rows_ND, hidden_NM, result_ND = (s_TBD.new_empty(most, width) for width in (D, M, D))
    groups = zip(
        count_G,
        example_N.split(count_G),
        gate_N1.split(count_G),
        up_GMD.mT.unbind(),
        up_bias_GM.unbind(),
        down_GMD.unbind(),
        strict=True,
    )
    for group, (count, row, gate, up_DM, up_bias_M, down_MD) in enumerate(groups):
        if count:
            s_BD, out_BD = s_TBD[group // experts], out_TBD[group // experts]
            x = torch.index_select(s_BD, 0, row, out=rows_ND[:count])
            hidden = gelu(torch.addmm(up_bias_M, x, up_DM, out=hidden_NM[:count]))
            result = torch.mm(hidden, down_MD, out=result_ND[:count])
            # The rows of a group are all different, and copying them is ten times as fast as adding by index.
            so_far = torch.index_select(out_BD, 0, row, out=rows_ND[:count])
            out_BD.index_copy_(0, row, so_far.addcmul_(result, gate))


def has_grouped_products(s_TBD: Tensor, up_TEMD: Tensor) -> bool:
    """Whether `open_experts` can be computed: a GPU's grouped products want rows of whole 16 bytes.

    >>> s_TBD, up_TEMD = torch.empty(2, 5, 12, device="meta"), torch.empty(2, 3, 24, 12, device="meta")
    >>> has_grouped_products(s_TBD, up_TEMD), has_grouped_products(s_TBD.bfloat16(), up_TEMD.bfloat16())
    (True, False)
    """
    is_whole = all(width * s_TBD.element_size() % 16 == 0 for width in up_TEMD.shape[2:])
    return s_TBD.device.type == "cpu" or is_whole


@library.custom_op("rankmixer::serve_experts", mutates_args=())
def serve_experts(
    s_TBD: Tensor,
    gates_TBE: Tensor,
    up_TEMD: Tensor,
    up_bias_TEM: Tensor,
    down_TEMD: Tensor,
    down_bias_TED: Tensor,
    dense_above: float,
) -> Tensor:
    """The gated experts as they are served: the open ones, or all where more than `dense_above` of them are open.

    How many are open is known only at run time; as one operator it leaves no break in a compiled graph.

    >>> s_TBD, gates_TBE = torch.randn(2, 5, 4), torch.randn(2, 5, 3).relu()
    >>> weights = torch.randn(2, 3, 6, 4), torch.randn(2, 3, 6), torch.randn(2, 3, 6, 4), torch.randn(2, 3, 4)
    >>> sparse, dense = (serve_experts(s_TBD, gates_TBE, *weights, dense_above) for dense_above in (1.0, 0.0))
    >>> torch.allclose(sparse, dense, atol=1e-4)
    True
    """
    is_dense = gates_TBE.count_nonzero().item() > dense_above * gates_TBE.numel()
    is_dense = is_dense or not has_grouped_products(s_TBD, up_TEMD)
    compute = all_experts if is_dense else open_experts
    return compute(s_TBD, gates_TBE, up_TEMD, up_bias_TEM, down_TEMD, down_bias_TED)


@serve_experts.register_fake
def _(s_TBD: Tensor, *_others: object) -> Tensor:
    return s_TBD.new_empty(s_TBD.shape)
