#!/usr/bin/env escript
%% Erlang/OTP's side of the benchmark "mass-crash": one supervisor, N children, all of them crash at once.
%% Prints the microseconds from the first order to crash until all have been replaced.
%%! +P 1000000
-module(crowd).
-mode(compile).
-behaviour(supervisor).
-export([main/1, init/1, start_child/1, live/1]).

main([Argument]) ->
    N = list_to_integer(Argument),
    logger:set_primary_config(level, none),
    {ok, _} = supervisor:start_link(?MODULE, {self(), N}),
    Children = arrivals(N, []),
    Began = erlang:monotonic_time(microsecond),
    [Child ! crash || Child <- Children],
    arrivals(N, []),
    io:format("~b~n", [erlang:monotonic_time(microsecond) - Began]),
    halt(0, [{flush, true}]).

init({Collector, N}) ->
    Child = fun(Id) -> #{id => Id, start => {?MODULE, start_child, [Collector]}} end,
    {ok, {#{intensity => 1000000, period => 1}, [Child(Id) || Id <- lists:seq(1, N)]}}.

start_child(Collector) ->
    {ok, spawn_link(?MODULE, live, [Collector])}.

live(Collector) ->
    Collector ! {up, self()},
    receive crash -> exit(crashed) end.

arrivals(0, Children) -> Children;
arrivals(N, Children) -> receive {up, Child} -> arrivals(N - 1, [Child | Children]) end.
