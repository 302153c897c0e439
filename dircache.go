package moovauth

import (
	"context"
	"crypto/rand"
	"errors"
	"io"
	"io/fs"
	"os"
)

// DirCache is a [Cache] in a directory, for processes that run one after the
// other, or a few on one machine. It makes the directory where there is none,
// for its owner alone (0700), with files that only the owner can read (0600). A
// file is written whole or not at all.
type DirCache string

// Get reads a file. Its error is [fs.ErrNotExist] where there is none.
func (d DirCache) Get(ctx context.Context, key string) ([]byte, error) {
	dir, err := d.open(ctx)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	f, err := dir.Open(key)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, maxEntry))
}

// Put writes a file.
func (d DirCache) Put(ctx context.Context, key string, data []byte) error {
	if err := os.MkdirAll(string(d), 0o700); err != nil {
		return err
	}
	dir, err := d.open(ctx)
	if err != nil {
		return err
	}
	defer dir.Close()
	part := key + ".part-" + rand.Text()
	if err := dir.WriteFile(part, data, 0o600); err != nil {
		return errors.Join(err, dir.Remove(part))
	}
	if err := dir.Rename(part, key); err != nil {
		return errors.Join(err, dir.Remove(part))
	}
	return nil
}

// Delete removes a file.
func (d DirCache) Delete(ctx context.Context, key string) error {
	dir, err := d.open(ctx)
	if err == nil {
		defer dir.Close()
		err = dir.Remove(key)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// open opens the directory. No key leads out of it.
func (d DirCache) open(ctx context.Context) (*os.Root, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	return os.OpenRoot(string(d))
}
