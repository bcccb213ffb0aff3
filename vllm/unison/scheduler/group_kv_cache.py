# SPDX-License-Identifier: Apache-2.0
"""KV blocks of sequence groups: all lanes get theirs or none does; freeing frees all."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vllm.unison.conditioning.states_kv_cache import group_of_states
from vllm.unison.scheduler.encoder_states_blocks import register_encoder_states
from vllm.unison.scheduler.sequence_group import LaneState, SequenceGroup
from vllm.v1.core.kv_cache_manager import KVCacheBlocks, KVCacheManager
from vllm.v1.core.single_type_kv_cache_manager import FullAttentionManager
from vllm.v1.request import RequestStatus

if TYPE_CHECKING:
    from vllm.v1.core.kv_cache_utils import KVCacheBlock
    from vllm.v1.request import Request


class GroupKVCacheManager(KVCacheManager):
    """Upstream's manager, in which a request stands for all lanes of its group."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        register_encoder_states()
        super().__init__(*args, **kwargs)
        self._finished_lanes: set[str] = set()
        self._preempted_lanes: set[str] = set()
        self._num_preempted_groups = 0
        managers = self.coordinator.single_type_managers
        self._states_group = group_of_states(self.kv_cache_config)
        of_tokens = [m for i, m in enumerate(managers) if i != self._states_group]
        # With full attention alone, blocks that suffice need no further book-keeping.
        full_attention_only = len(of_tokens) == 1 and type(of_tokens[0]) is FullAttentionManager
        self._full_attention = of_tokens[0] if full_attention_only else None

    def pop_finished_lanes(self) -> set[str]:
        """Ids of guidance lanes that are gone since the last call and that the worker has."""
        lanes, self._finished_lanes = self._finished_lanes, set()
        return lanes

    def pop_preempted_lanes(self) -> set[str]:
        """Ids of guidance lanes preempted since the last call that the worker has."""
        lanes, self._preempted_lanes = self._preempted_lanes, set()
        return lanes

    def pop_num_preempted_groups(self) -> int:
        """Guided groups that were preempted since the last call."""
        count, self._num_preempted_groups = self._num_preempted_groups, 0
        return count

    def take_cached_prefix(self, lane: LaneState) -> int:
        """Give a guidance lane that has no blocks the cached blocks of its prompt.

        They are taken before anything is allocated for the step, which could evict them.

        Returns:
            Tokens that the lane need not compute.
        """
        request = lane.request
        if request.num_computed_tokens or self._has_blocks(request):
            return 0
        blocks, hit, _ = self.get_computed_blocks(request)
        if hit:
            allocated = super().allocate_slots(
                request,
                0,
                num_new_computed_tokens=hit,
                new_computed_blocks=blocks,
                has_scheduled_reqs=False,
            )
            if allocated is None:
                return 0
            request.num_computed_tokens = hit
        return hit

    def allocate_slots(
        self, request: Request, num_new_tokens: int, *args: Any, **kwargs: Any
    ) -> KVCacheBlocks | None:
        """Slots for a step: of the request, or of all lanes as its group's plan has them."""
        group = request.group
        if group is None:
            kwargs |= self._states_argument(request)
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
        num_cached = main_arguments.get("num_new_computed_tokens", 0)
        for lane, tokens in zip(plan.lanes, plan.tokens, strict=True):
            if not lane.is_conditional:
                lane.request.status = group.main.status
                lane.request.num_in_flight_tokens = lane.num_tokens_last_step
            if not (lane.is_conditional and num_cached) and (
                tokens == 0 or self._has_slots(lane.request, tokens)
            ):
                continue
            arguments = main_arguments
            if not lane.is_conditional:
                arguments = {"has_scheduled_reqs": main_arguments.get("has_scheduled_reqs", True)}
            # Not hashed yet: blocks of an admission that is cancelled must not be found by their
            # content, which nobody has computed.
            arguments = arguments | {"delay_cache_blocks": True}
            arguments |= self._states_argument(lane.request)
            blocks = super().allocate_slots(lane.request, tokens, **arguments)
            if blocks is None:
                return None
            if lane.is_conditional:
                result = blocks
        for lane, tokens in zip(plan.lanes, plan.tokens, strict=True):
            computed = lane.request.num_computed_tokens + tokens
            if lane.is_conditional:
                computed += num_cached
            self._cache_lane(lane.request, min(computed, lane.request.num_tokens))
        return result

    def _has_slots(self, request: Request, num_tokens: int) -> bool:
        """Whether a request's blocks are known to suffice for its next tokens."""
        manager = self._full_attention
        if manager is None or self._lacks_states(request):
            return False
        blocks = manager.req_to_blocks.get(request.request_id)
        needed = request.num_computed_tokens + num_tokens
        return blocks is not None and needed <= len(blocks) * manager.block_size

    def _num_states(self, request: Request) -> int:
        """Encoder states whose keys and values a lane keeps."""
        if self._states_group is None or request.streams is None:
            return 0
        encoder_input = request.streams.encoder_input
        return 0 if encoder_input is None else encoder_input.num_states

    def _states_argument(self, request: Request) -> dict[str, int]:
        """What upstream's allocation is told of a lane's encoder states."""
        num_states = self._num_states(request)
        return {"num_encoder_tokens": num_states} if num_states else {}

    def _lacks_states(self, request: Request) -> bool:
        """Whether blocks for a lane's encoder states are still to be allocated."""
        if self._states_group is None or not self._num_states(request):
            return False
        return not self.coordinator.get_blocks(request.request_id)[self._states_group]

    def _cache_lane(self, request: Request, num_tokens: int) -> None:
        """Cache a lane's full blocks among its first tokens."""
        manager = self._full_attention
        if manager is not None:
            num_cached = manager.num_cached_block.get(request.request_id, 0)
            if num_cached >= num_tokens // manager.block_size:
                return
        super().cache_blocks(request, num_tokens)

    def _fits(self, group: SequenceGroup, main_arguments: dict[str, Any]) -> bool:
        """Whether all known tokens of all active lanes fit the free blocks."""
        groups = self.kv_cache_config.kv_cache_groups
        needed = 0
        for lane in group.active_lanes:
            for number, of_cache in enumerate(groups):
                is_states = number == self._states_group
                count = self._num_states(lane.request) if is_states else lane.request.num_tokens
                needed += -(-count // of_cache.kv_cache_spec.block_size)
        owned = sum(
            len(of_cache)
            for lane in group.guidance_lanes
            for of_cache in self.get_blocks(lane.lane_id).blocks
        )
        # A cached block that nobody uses is among the free ones, and is taken from them.
        cached = main_arguments.get("new_computed_blocks")
        shared = 0
        if cached is not None:
            shared = sum(block.ref_cnt > 0 for of_cache in cached.blocks for block in of_cache)
        return needed - owned - shared <= self.block_pool.get_num_free_blocks()

    def _has_blocks(self, request: Request) -> bool:
        return any(self.get_blocks(request.request_id).blocks)

    def free_lanes(self, lanes: list[LaneState]) -> None:
        """Free the blocks of lanes that have left their group, and tell the worker."""
        for lane in lanes:
            super().free(lane.request)
            if lane.is_on_worker:
                self._finished_lanes.add(lane.lane_id)

    def free(self, request: Request) -> None:
        """Free a request's blocks, with those of all its lanes."""
        super().free(request)
        group = request.group
        if group is None:
            return
        group.conditional_lane.note_freed()
        if request.is_finished():
            self.free_lanes(group.leave())
            return
        self._num_preempted_groups += request.status == RequestStatus.RUNNING
        for lane in group.guidance_lanes:
            super().free(lane.request)
            lane.note_freed()
            if lane.is_on_worker:
                self._preempted_lanes.add(lane.lane_id)
            lane.request.num_computed_tokens = 0

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
        self._cache_lane(request, num_computed_tokens)
        for lane in request.group.guidance_lanes:
            own = lane.request
            known = own.num_computed_tokens - request.num_output_placeholders
            self._cache_lane(own, min(known, own.num_tokens))
