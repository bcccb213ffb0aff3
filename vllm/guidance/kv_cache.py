# SPDX-License-Identifier: Apache-2.0
"""KV blocks of sequence groups: all lanes get theirs or none does; freeing frees all."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vllm.guidance.group import Row, SequenceGroup
from vllm.v1.core.kv_cache_manager import KVCacheBlocks, KVCacheManager
from vllm.v1.core.single_type_kv_cache_manager import FullAttentionManager
from vllm.v1.request import RequestStatus

if TYPE_CHECKING:
    from vllm.v1.core.kv_cache_utils import KVCacheBlock
    from vllm.v1.request import Request


class GroupKVCacheManager(KVCacheManager):
    """Upstream's manager, in which a request stands for all lanes of its group."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._finished_rows: set[str] = set()
        self._num_preempted_groups = 0
        managers = self.coordinator.single_type_managers
        # With full attention alone, blocks that suffice need no further book-keeping.
        is_plain = len(managers) == 1 and type(managers[0]) is FullAttentionManager
        self._plain_manager = managers[0] if is_plain else None

    def take_finished_rows(self) -> set[str]:
        """Row ids of guidance lanes that are gone since the last call and that the worker knows."""
        rows, self._finished_rows = self._finished_rows, set()
        return rows

    def take_num_preempted_groups(self) -> int:
        """Guided groups that were preempted since the last call."""
        count, self._num_preempted_groups = self._num_preempted_groups, 0
        return count

    def adopt_cached_prefix(self, row: Row) -> int:
        """Give a guidance lane that holds nothing the cached blocks of its prompt.

        They are taken before anything is allocated for the step, which could evict them.

        Returns:
            Tokens that the lane need not compute.
        """
        lane = row.request
        if lane.num_computed_tokens or self._holds_blocks(lane):
            return 0
        blocks, hit, _ = self.get_computed_blocks(lane)
        if hit:
            adopted = super().allocate_slots(
                lane,
                0,
                num_new_computed_tokens=hit,
                new_computed_blocks=blocks,
                has_scheduled_reqs=False,
            )
            if adopted is None:
                return 0
            lane.num_computed_tokens = hit
        return hit

    def allocate_slots(
        self, request: Request, num_new_tokens: int, *args: Any, **kwargs: Any
    ) -> KVCacheBlocks | None:
        """Slots for a step: of the request, or of all lanes as its group's plan has them."""
        group = request.group
        if group is None:
            return super().allocate_slots(request, num_new_tokens, *args, **kwargs)
        allocated = self._allocate_group(group, kwargs)
        if allocated is None and request.status != RequestStatus.RUNNING:
            # Nothing stays behind of an admission that failed.
            self.free(request)
        return allocated

    def _allocate_group(
        self, group: SequenceGroup, main_arguments: dict[str, Any]
    ) -> KVCacheBlocks | None:
        plan = group.plan
        assert plan is not None
        if main_arguments.get("full_sequence_must_fit") and not self._fits(group, main_arguments):
            return None
        result = self.empty_kv_cache_blocks
        adopted = main_arguments.get("num_new_computed_tokens", 0)
        for row, tokens in zip(plan.rows, plan.tokens, strict=True):
            if not row.is_main:
                row.request.status = group.main.status
                row.request.num_in_flight_tokens = row.num_last
            if not (row.is_main and adopted) and (
                tokens == 0 or self._has_slots(row.request, tokens)
            ):
                continue
            arguments = main_arguments
            if not row.is_main:
                arguments = {"has_scheduled_reqs": main_arguments.get("has_scheduled_reqs", True)}
            # Not hashed yet: blocks of lanes that are given up must not be found by their content,
            # which nobody has computed.
            arguments = arguments | {"delay_cache_blocks": True}
            blocks = super().allocate_slots(row.request, tokens, **arguments)
            if blocks is None:
                return None
            if row.is_main:
                result = blocks
        for row, tokens in zip(plan.rows, plan.tokens, strict=True):
            computed = row.request.num_computed_tokens + tokens
            if row.is_main:
                computed += adopted
            self._cache_row(row.request, min(computed, row.request.num_tokens))
        return result

    def _has_slots(self, request: Request, num_tokens: int) -> bool:
        """Whether the blocks that a request holds are known to take its next tokens."""
        manager = self._plain_manager
        if manager is None:
            return False
        held = manager.req_to_blocks.get(request.request_id)
        needed = request.num_computed_tokens + num_tokens
        return held is not None and needed <= len(held) * manager.block_size

    def _cache_row(self, request: Request, num_tokens: int) -> None:
        """Cache a lane's full blocks among its first tokens."""
        manager = self._plain_manager
        if manager is not None:
            num_cached = manager.num_cached_block.get(request.request_id, 0)
            if num_cached >= num_tokens // manager.block_size:
                return
        super().cache_blocks(request, num_tokens)

    def _fits(self, group: SequenceGroup, main_arguments: dict[str, Any]) -> bool:
        """Whether all known tokens of all lanes fit the free blocks."""
        size = self.kv_cache_config.kv_cache_groups[0].kv_cache_spec.block_size
        needed = sum(-(-row.request.num_tokens // size) for row in group.rows)
        held = sum(len(self.get_blocks(row.row_id).blocks[0]) for row in group.lanes)
        adopted = main_arguments.get("num_new_computed_tokens", 0) // size
        return needed - held - adopted <= self.block_pool.get_num_free_blocks()

    def _holds_blocks(self, request: Request) -> bool:
        return any(self.get_blocks(request.request_id).blocks)

    def free_lanes(self, rows: list[Row]) -> None:
        """Free the blocks of lanes that have left their group, and tell the worker."""
        for row in rows:
            super().free(row.request)
            if row.is_known:
                self._finished_rows.add(row.row_id)

    def free(self, request: Request) -> None:
        """Free a request's blocks, with those of all its lanes."""
        super().free(request)
        group = request.group
        if group is None:
            return
        group.main_row.num_blocks_sent = None
        if request.is_finished():
            self.free_lanes(group.leave())
            return
        self._num_preempted_groups += request.status == RequestStatus.RUNNING
        for row in group.lanes:
            super().free(row.request)
            row.num_blocks_sent = None
            row.num_adopted = 0
            row.request.num_computed_tokens = 0

    def pop_blocks_for_free(self, request: Request) -> list[KVCacheBlock]:
        """Blocks of a request, taken out of the books; groups never defer their frees."""
        if request.group is not None:
            raise RuntimeError("guidance does not support KV connectors, which defer frees")
        return super().pop_blocks_for_free(request)

    def cache_blocks(self, request: Request, num_computed_tokens: int) -> None:
        """Cache a request's full blocks, and those of its lanes."""
        if request.group is None:
            super().cache_blocks(request, num_computed_tokens)
            return
        self._cache_row(request, num_computed_tokens)
        for row in request.group.lanes:
            lane = row.request
            known = lane.num_computed_tokens - request.num_output_placeholders
            self._cache_row(lane, min(known, lane.num_tokens))
