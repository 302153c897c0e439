package fleet

// This file is a Redis in memory for fake time. It runs the limiter's script as Redis
// does.

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
	lua "github.com/yuin/gopher-lua"
)

const trip = time.Millisecond // a round trip to Redis

type memoryRedis struct {
	redis.UniversalClient

	mu       sync.Mutex // guards what follows
	values   map[string]string
	commands int
}

func (r *memoryRedis) EvalSha(context.Context, string, []string, ...any) *redis.Cmd {
	return redis.NewCmdResult(nil, noScript{})
}

// noScript makes go-redis send the script with Eval.
type noScript struct{}

func (noScript) Error() string { return "NOSCRIPT No matching script." }
func (noScript) RedisError()   {}

func (r *memoryRedis) Eval(_ context.Context, script string, keys []string, args ...any) *redis.Cmd {
	time.Sleep(trip / 2)
	reply, err := r.run(script, keys, args)
	time.Sleep(trip / 2)
	return redis.NewCmdResult(reply, err)
}

func (r *memoryRedis) run(script string, keys []string, args []any) ([]any, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.commands++
	state := lua.NewState()
	defer state.Close()
	keyTable, argTable, module := state.NewTable(), state.NewTable(), state.NewTable()
	for _, key := range keys {
		keyTable.Append(lua.LString(key))
	}
	for _, arg := range args {
		argTable.Append(lua.LString(fmt.Sprint(arg)))
	}
	module.RawSetString("call", state.NewFunction(r.call))
	state.SetGlobal("KEYS", keyTable)
	state.SetGlobal("ARGV", argTable)
	state.SetGlobal("redis", module)
	if err := state.DoString(script); err != nil {
		return nil, err
	}
	var reply []any
	state.CheckTable(-1).ForEach(func(_, value lua.LValue) {
		reply = append(reply, int64(value.(lua.LNumber)))
	})
	return reply, nil
}

// call is redis.call in the script. It has the commands that the script uses. The
// caller holds r.mu.
func (r *memoryRedis) call(state *lua.LState) int {
	switch command := state.CheckString(1); command {
	case "TIME":
		now := time.Now().UnixMicro()
		reply := state.NewTable()
		reply.Append(lua.LString(fmt.Sprint(now / 1e6)))
		reply.Append(lua.LString(fmt.Sprint(now % 1e6)))
		state.Push(reply)
	case "GET":
		value, ok := r.values[state.CheckString(2)]
		if ok {
			state.Push(lua.LString(value))
		} else {
			state.Push(lua.LFalse)
		}
	case "SET":
		r.values[state.CheckString(2)] = state.CheckString(3)
		state.Push(lua.LTrue)
	default:
		state.RaiseError("unknown command %s", command)
	}
	return 1
}
